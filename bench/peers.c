/* The two ways of moving a job process by process, as one would write them without a plan.
 *
 * peers move_pages TARGET PID...             every resident page of every VMA, one move_pages(2) call per VMA
 * peers migrate_pages TARGET SOURCE PID...   one migrate_pages(2) call per process
 *
 * Prints the seconds it took, from the first process to the last, and how many addresses it gave.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MOVE_ALL = 4, CHUNK = 1 << 16, NOT_TOLD = -1000 };

static void **addresses;
static int *nodes, *status;
static size_t room;
static unsigned long given;

static void make_room(size_t pages, int target)
{
	if (pages <= room)
		return;
	addresses = realloc(addresses, pages * sizeof *addresses);
	nodes = realloc(nodes, pages * sizeof *nodes);
	status = realloc(status, pages * sizeof *status);
	for (; room < pages; room++)
		nodes[room] = target;
}

static size_t resident(int pagemap, uint64_t lo, uint64_t hi)
{
	static uint64_t entries[CHUNK];
	size_t found = 0;

	while (lo < hi) {
		size_t want = hi - lo < CHUNK ? hi - lo : CHUNK;
		ssize_t got = pread(pagemap, entries, want * 8, lo * 8) / 8;

		if (got <= 0)
			break;
		for (ssize_t i = 0; i < got; i++)
			if (entries[i] >> 63)
				addresses[found++] = (void *)((lo + i) * PAGE);
		lo += got;
	}
	return found;
}

/* A call that cannot move a page stops there and says how many it did not move: go on behind the page it named. */
static void move(int pid, size_t pages)
{
	size_t at = 0;

	while (at < pages) {
		long missed;

		for (size_t i = at; i < pages; i++)
			status[i] = NOT_TOLD;
		missed = syscall(SYS_move_pages, pid, pages - at, addresses + at, nodes + at, status + at, MOVE_ALL);
		given += pages - at;
		if (missed <= 0)
			return;
		while (at < pages && status[at] != NOT_TOLD)
			at++;
		at++;
	}
}

static void move_process(int pid, int target)
{
	char path[64], line[8192];
	unsigned long lo, hi;
	FILE *maps;
	int pagemap;

	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	maps = fopen(path, "r");
	if (!maps || pagemap < 0)
		exit(1);
	while (fgets(line, sizeof line, maps)) {
		if (sscanf(line, "%lx-%lx", &lo, &hi) != 2 || strstr(line, "[v"))
			continue;
		make_room((hi - lo) / PAGE, target);
		move(pid, resident(pagemap, lo / PAGE, hi / PAGE));
	}
	fclose(maps);
	close(pagemap);
}

static void migrate_process(int pid, int target, int source)
{
	unsigned long from = 1UL << source, to = 1UL << target;

	if (syscall(SYS_migrate_pages, pid, 8 * sizeof from, &from, &to) < 0)
		exit(1);
}

int main(int argc, char **argv)
{
	struct timespec began, ended;
	int by_page = argc > 3 && !strcmp(argv[1], "move_pages");

	if (argc < 4)
		return 2;
	clock_gettime(CLOCK_MONOTONIC, &began);
	for (int i = by_page ? 3 : 4; i < argc; i++)
		if (by_page)
			move_process(atoi(argv[i]), atoi(argv[2]));
		else
			migrate_process(atoi(argv[i]), atoi(argv[2]), atoi(argv[3]));
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.6f %lu\n", (ended.tv_sec - began.tv_sec) + (ended.tv_nsec - began.tv_nsec) / 1e9, given);
}
