/* What is this?      The edit distance behind every suggestion.
 * State owned:       none. */
#include "common/config/suggest.h"

#include <string.h>

unsigned qn_edit_distance(const char *a, const char *b)
{
    size_t rows = strnlen(a, QN_NAME_MAX), columns = strnlen(b, QN_NAME_MAX);
    unsigned row[QN_NAME_MAX + 1]; /* of the table, the one being filled */
    for (size_t j = 0; j <= columns; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; i <= rows; i++) {
        unsigned diagonal = row[0];
        row[0] = (unsigned)i;
        for (size_t j = 1; j <= columns; j++) {
            unsigned change = diagonal + (a[i - 1] != b[j - 1]);
            unsigned step = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < step ? change : step;
        }
    }
    return row[columns];
}
