/* How long a program runs on CPUs that it is to leave: `newcomer FIRST-LAST` prints the milliseconds from its start
 * until it may run on none of these CPUs, or -1 after ten seconds. A batch script's interpreter, so that nothing runs
 * before it. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	double began = now_ms();
	int first, last, cpu, left;
	cpu_set_t may;

	if (argc < 2 || sscanf(argv[1], "%d-%d", &first, &last) != 2)
		return 2;
	do {
		left = 1;
		if (sched_getaffinity(0, sizeof(may), &may))
			return 1;
		for (cpu = first; cpu <= last; cpu++)
			left &= !CPU_ISSET(cpu, &may);
		if (left) {
			printf("%.3f\n", now_ms() - began);
			return 0;
		}
		usleep(1000);
	} while (now_ms() - began < 1e4);
	puts("-1");
	return 0;
}
