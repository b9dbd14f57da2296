/* Processes with many mappings, for the planner to read.
 *
 * mappings FILE MAPPINGS PROCESSES: maps every other page of FILE, each by itself, forks, writes "ready", and waits.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int file, mappings, processes;

	if (argc != 4)
		return 2;
	file = open(argv[1], O_RDWR);
	mappings = atoi(argv[2]);
	processes = atoi(argv[3]);
	for (int number = 0; number < mappings; number++)
		if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 8192L * number) == MAP_FAILED)
			return 1;
	for (int number = 1; number < processes; number++)
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;)
				pause();
		}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
