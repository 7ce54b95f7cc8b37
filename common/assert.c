/* What is this?      The one exit for broken invariants.
 * State owned:       none.
 * Must never:        return, allocate, or take a lock. */
#include "common/assert.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/watch/last_error.h"

void qn_assert_failed(const char *expression, const char *file, int line)
{
    char text[512];
    int length = snprintf(text, sizeof text, "<2>bug: %s:%d: assertion failed: %s\n", file, line, expression);
    if (length > (int)sizeof text - 1) length = (int)sizeof text - 1;
    if (length > 3) qn_last_error_write(text + 3);
    if (length > 0 && write(STDERR_FILENO, text, (size_t)length) < 0) { /* nothing left to tell */
    }
    abort();
}
