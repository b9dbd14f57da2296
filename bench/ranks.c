/* A job that stands still: processes that share memory, have memory of their own, or run threads.
 *
 * ranks PROCESSES THREADS SHARED_MIB PRIVATE_MIB
 *
 * The first process is a rank like the others, so that nobody outside the job maps what the job maps. Each process
 * has every page of the shared memory in its page table. Writes "ready" when all is touched, then waits to be killed.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static char *map(size_t bytes, int kind)
{
	char *memory = bytes ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0) : NULL;

	if (memory == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return memory;
}

static void *stand(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	int processes, threads, ready[2];
	size_t shared_bytes, private_bytes;
	volatile char *shared;
	char token = 0;

	if (argc != 5)
		return 2;
	processes = atoi(argv[1]);
	threads = atoi(argv[2]);
	shared_bytes = strtoul(argv[3], NULL, 10) << 20;
	private_bytes = strtoul(argv[4], NULL, 10) << 20;
	/* Base pages everywhere: what is measured must not depend on how fragmented the host is. */
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (pipe(ready))
		return 1;
	shared = map(shared_bytes, MAP_SHARED);
	if (shared)
		memset((char *)shared, 1, shared_bytes);
	for (int rank = 1; rank < processes; rank++) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (!pid) {
			processes = 0;
			break;
		}
	}
	for (size_t at = 0; at < shared_bytes; at += 4096)
		(void)shared[at];
	if (private_bytes)
		memset(map(private_bytes, MAP_PRIVATE), 2, private_bytes);
	for (int number = 1; number < threads; number++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, stand, NULL))
			return 1;
	}
	if (!processes && write(ready[1], &token, 1) != 1)
		return 1;
	for (int rank = 1; rank < processes; rank++)
		if (read(ready[0], &token, 1) != 1)
			return 1;
	if (processes) {
		puts("ready");
		fflush(stdout);
	}
	stand(NULL);
}
