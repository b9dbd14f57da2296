/* A job that runs on: processes that share memory and have some of their own, write to both, and take more all the time.
 *
 * busy PROCESSES SHARED_MIB PRIVATE_MIB GAPS
 *
 * GAPS is a file of one unsigned 64-bit number for each process: the longest time in nanoseconds between two of its
 * steps, which whoever reads it sets to zero. Writes "ready" when all is touched, then runs until it is killed.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STEP_US = 1000, MORE_EVERY = 8, MORE_PAGES = 1 << 16 };

static char *map(size_t bytes, int kind, int fd)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, kind | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	if (memory == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return memory;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void run(char *shared, size_t shared_pages, char *own, size_t own_pages, volatile uint64_t *gap)
{
	char *more = map((size_t)MORE_PAGES * PAGE, MAP_PRIVATE, -1);
	uint64_t last = now(), at;

	for (unsigned step = 0;; step++) {
		shared[step % shared_pages * PAGE]++;
		own[step % own_pages * PAGE]++;
		if (step % MORE_EVERY == 0)
			more[step / MORE_EVERY % MORE_PAGES * PAGE] = 1;
		usleep(STEP_US);
		at = now();
		if (at - last > *gap)
			*gap = at - last;
		last = at;
	}
}

int main(int argc, char **argv)
{
	int processes, rank, file, ready[2];
	size_t shared_bytes, own_bytes;
	char *shared, *own, token = 0;
	uint64_t *gaps;

	if (argc != 5)
		return 2;
	processes = atoi(argv[1]);
	shared_bytes = strtoul(argv[2], NULL, 10) << 20;
	own_bytes = strtoul(argv[3], NULL, 10) << 20;
	file = open(argv[4], O_RDWR);
	if (file < 0 || pipe(ready))
		return 1;
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	gaps = (uint64_t *)map(PAGE, MAP_SHARED, file);
	shared = map(shared_bytes, MAP_SHARED, -1);
	memset(shared, 1, shared_bytes);
	for (rank = 1; rank < processes; rank++) {
		pid_t pid = fork();

		if (pid < 0)
			return 1;
		if (!pid)
			break;
	}
	rank %= processes;
	own = map(own_bytes, MAP_PRIVATE, -1);
	memset(own, 2, own_bytes);
	for (size_t at = 0; at < shared_bytes; at += PAGE)
		(void)((volatile char *)shared)[at];
	if (rank && write(ready[1], &token, 1) != 1)
		return 1;
	if (!rank) {
		for (int other = 1; other < processes; other++)
			if (read(ready[0], &token, 1) != 1)
				return 1;
		puts("ready");
		fflush(stdout);
	}
	run(shared, shared_bytes / PAGE, own, own_bytes / PAGE, &gaps[rank]);
}
