/* The scheduler daemon as a process. */
#include "common/daemon/daemon.h"

int main(int argc, char **argv) { return qn_daemon_main(argc, argv, &qn_scheduler_daemon); }
