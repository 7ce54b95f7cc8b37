/* What is this?      The build id, set by the Makefile.
 * State owned:       none. */
#include "common/build.h"

#ifndef QN_BUILD
#define QN_BUILD "unknown"
#endif

const char *qn_build_id(void) { return QN_BUILD; }
