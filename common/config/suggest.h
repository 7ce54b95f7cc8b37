/* "Did you mean …?": how far two words are apart. */
#ifndef QN_COMMON_CONFIG_SUGGEST_H
#define QN_COMMON_CONFIG_SUGGEST_H

#include "common/limits.h"

/* A word further away than this is not what was meant. */
#define QN_SUGGEST_DISTANCE_MAX 3

/* Levenshtein's edit distance of the first QN_NAME_MAX bytes of each. Pure. */
unsigned qn_edit_distance(const char *a, const char *b);

#endif
