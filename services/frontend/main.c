/* What is this?      The process of the frontend daemon.
 * State owned:       none.
 * Must never:        do more than hand the descriptor to the skeleton.
 * Read next:         service.c */
#include "common/daemon/daemon.h"

int main(int argc, char **argv) { return qn_daemon_main(argc, argv, &qn_frontend_daemon); }
