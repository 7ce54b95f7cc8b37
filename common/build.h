/* Which build this is: "0.1.0+1a2b3c4d5e6f" (version and commit). HELLO, /version and logs show it. */
#ifndef QN_COMMON_BUILD_H
#define QN_COMMON_BUILD_H

/* Returns view of a constant. */
const char *qn_build_id(void);

#endif
