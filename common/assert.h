/* Bugs. QN_ASSERT stays on in release builds: a broken invariant ends the process at once, loudly,
 * because a restarted service recovers and a wrong one corrupts. Never assert on bytes that came
 * from a wire, a file or a user: those are failures (err.h). */
#ifndef QN_COMMON_ASSERT_H
#define QN_COMMON_ASSERT_H

void qn_assert_failed(const char *expression, const char *file, int line) __attribute__((noreturn));

#define QN_ASSERT(expression) ((expression) ? (void)0 : qn_assert_failed(#expression, __FILE__, __LINE__))

#endif
