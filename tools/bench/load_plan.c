/* What is this?      Arrivals and lengths of a load, drawn from a seed.
 * State owned:       none; callers embed the structs.
 * Must never:        read a clock or another source of chance than the seed.
 * Read next:         load_prompts.c, which makes requests of the lengths; load_engine.c, which sends them. */
#include "tools/bench/load_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/limits.h"

#define PI 3.14159265358979323846
#define SIGMA_MAX 10
#define GOLDEN 0x9e3779b97f4a7c15ull

/* ---- random numbers ---- */

static uint64_t mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

load_random_t load_random(uint64_t seed, load_purpose_t purpose, uint64_t index)
{
    uint64_t state = mix(seed + GOLDEN);
    state = mix(state + GOLDEN * ((uint64_t)purpose + 1));
    return (load_random_t){.state = mix(state + GOLDEN * (index + 1))};
}

uint64_t load_random_next(load_random_t *random) { return mix(random->state += GOLDEN); }

double load_random_unit(load_random_t *random) { return ((double)(load_random_next(random) >> 11) + 1) * 0x1p-53; }

uint32_t load_random_below(load_random_t *random, uint32_t count)
{
    return (uint32_t)(((load_random_next(random) >> 32) * count) >> 32);
}

/* ---- lengths ---- */

static qn_err_t bad_length(const char *text)
{
    return qn_fail(QN_ERR_INVALID,
                   "wants N, A-B, lognormal:MEDIAN:SIGMA or exp:MEAN, lengths from 1 to %u, SIGMA from 0 to %d, not "
                   "\"%.80s\"",
                   QN_PROMPT_TOKENS_MAX, SIGMA_MAX, text);
}

/* A plain decimal number from `least` to `most` that `end_mark` ends; returns what follows it, or NULL. */
static const char *take_number(const char *text, char end_mark, double least, double most, double *ret_number)
{
    char *end;
    if (*text < '0' || *text > '9') return NULL;
    double number = strtod(text, &end);
    if (*end != end_mark || !(number >= least && number <= most)) return NULL;
    /* "0x10" and "inf" are numbers to strtod, not to people. */
    if (strspn(text, "0123456789.eE") != (size_t)(end - text)) return NULL;
    *ret_number = number;
    return end + (end_mark != '\0');
}

static bool is_whole(double number) { return number == floor(number); }

static bool parse_plain(const char *text, load_length_t *length)
{
    const double most = QN_PROMPT_TOKENS_MAX;
    if (take_number(text, '\0', 1, most, &length->first)) {
        length->kind = LOAD_LENGTH_FIXED;
        length->second = length->first;
        return is_whole(length->first);
    }
    length->kind = LOAD_LENGTH_UNIFORM;
    const char *rest = take_number(text, '-', 1, most, &length->first);
    return rest && take_number(rest, '\0', length->first, most, &length->second) && is_whole(length->first) &&
           is_whole(length->second);
}

qn_err_t load_length_parse(const char *text, load_length_t *ret_length)
{
    const double most = QN_PROMPT_TOKENS_MAX;
    load_length_t length = {0};
    bool good;
    if (!strncmp(text, "lognormal:", 10)) {
        length.kind = LOAD_LENGTH_LOGNORMAL;
        const char *rest = take_number(text + 10, ':', 1, most, &length.first);
        good = rest && take_number(rest, '\0', 0, SIGMA_MAX, &length.second);
    } else if (!strncmp(text, "exp:", 4)) {
        length.kind = LOAD_LENGTH_EXPONENTIAL;
        good = take_number(text + 4, '\0', 1, most, &length.first) != NULL;
    } else {
        good = parse_plain(text, &length);
    }
    if (!good) return bad_length(text);
    *ret_length = length;
    return QN_OK;
}

uint32_t load_length_longest(const load_length_t *length)
{
    return length->kind <= LOAD_LENGTH_UNIFORM ? (uint32_t)length->second : 0;
}

static double normal(load_random_t *random)
{
    /* Box and Muller: two uniform numbers make a normal one. */
    double radius = sqrt(-2 * log(load_random_unit(random)));
    return radius * cos(2 * PI * load_random_unit(random));
}

uint32_t load_length_draw(const load_length_t *length, load_random_t *random, uint32_t most, bool *ret_clipped)
{
    double drawn = length->first;
    switch (length->kind) {
    case LOAD_LENGTH_FIXED: break;
    case LOAD_LENGTH_UNIFORM: drawn += load_random_below(random, (uint32_t)(length->second - length->first) + 1); break;
    case LOAD_LENGTH_LOGNORMAL: drawn *= exp(length->second * normal(random)); break;
    case LOAD_LENGTH_EXPONENTIAL: drawn *= -log(load_random_unit(random)); break;
    }
    drawn = round(drawn);
    *ret_clipped = drawn > most;
    if (drawn > most) return most;
    return drawn < 1 ? 1 : (uint32_t)drawn;
}

/* ---- arrivals ---- */

qn_err_t load_arrivals_parse(const char *text, double rate, uint64_t seed, load_arrivals_t *ret_arrivals)
{
    load_arrivals_t arrivals = {.rate = rate, .burst = 1, .random = load_random(seed, LOAD_FOR_ARRIVALS, 0)};
    double burst = LOAD_BURST_DEFAULT;
    if (!strcmp(text, "poisson"))
        arrivals.kind = LOAD_ARRIVALS_POISSON;
    else if (!strcmp(text, "uniform"))
        arrivals.kind = LOAD_ARRIVALS_UNIFORM;
    else if (!strcmp(text, "burst") ||
             (!strncmp(text, "burst:", 6) && take_number(text + 6, '\0', 1, LOAD_BURST_MAX, &burst) && is_whole(burst)))
        arrivals.kind = LOAD_ARRIVALS_BURST;
    else
        return qn_fail(QN_ERR_INVALID, "wants poisson, uniform, burst or burst:N with N from 1 to %d, not \"%.80s\"",
                       LOAD_BURST_MAX, text);
    if (arrivals.kind == LOAD_ARRIVALS_BURST) arrivals.burst = (uint32_t)burst;
    *ret_arrivals = arrivals;
    return QN_OK;
}

double load_arrivals_next(load_arrivals_t *arrivals)
{
    uint64_t number = arrivals->drawn++;
    if (arrivals->kind == LOAD_ARRIVALS_POISSON)
        arrivals->last_s += -log(load_random_unit(&arrivals->random)) / arrivals->rate;
    else
        arrivals->last_s = (double)(number - number % arrivals->burst) / arrivals->rate;
    return arrivals->last_s;
}
