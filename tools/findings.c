/* What is this?      The list of what an examination found, and how it is shown.
 * State owned:       none; the list is the caller's.
 * Must never:        examine.
 * Read next:         model_check.c. */
#include "tools/findings.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/assert.h"
#include "tools/cli.h"

void findings_add(findings_t *findings, finding_level_t level, qn_err_t err, const char *name, const char *remedy,
                  const char *format, ...)
{
    QN_ASSERT(findings->count < FINDINGS_MAX);
    finding_t *finding = &findings->items[findings->count++];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
    finding->level = level;
    finding->err = err;
    finding->name = name;
    finding->remedy = remedy;
}

finding_level_t findings_worst(const findings_t *findings)
{
    finding_level_t worst = FINDING_OK;
    for (size_t i = 0; i < findings->count; i++)
        if (findings->items[i].level > worst) worst = findings->items[i].level;
    return worst;
}

qn_err_t findings_first_failure(const findings_t *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        if (findings->items[i].level == FINDING_FAIL) return findings->items[i].err;
    return QN_OK;
}

const char *finding_level_name(finding_level_t level)
{
    static const char *const NAMES[] = {[FINDING_OK] = "ok", [FINDING_WARN] = "warn", [FINDING_FAIL] = "fail"};
    return NAMES[level];
}

void findings_print(const findings_t *findings)
{
    static const char *const COLOURS[] = {
        [FINDING_OK] = "\033[32m", [FINDING_WARN] = "\033[33m", [FINDING_FAIL] = "\033[31m"};
    const char *no_colour = getenv("NO_COLOR");
    bool colour = isatty(STDOUT_FILENO) && !(no_colour && no_colour[0]);
    for (size_t i = 0; i < findings->count; i++) {
        const finding_t *finding = &findings->items[i];
        printf("%s%-4s%s  %-10s  ", colour ? COLOURS[finding->level] : "", finding_level_name(finding->level),
               colour ? "\033[0m" : "", finding->name);
        cli_print_text(finding->text, strlen(finding->text)); /* may hold names from files */
        printf("\n");
        if (finding->remedy) printf("                  -> %s\n", finding->remedy);
    }
}

json_t *findings_json(const findings_t *findings)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < findings->count; i++) {
        const finding_t *finding = &findings->items[i];
        json_array_append_new(rows, json_pack("{s:s, s:s, s:o, s:s*}", "check", finding->name, "result",
                                              finding_level_name(finding->level), "text", cli_text_json(finding->text),
                                              "remedy", finding->remedy));
    }
    return rows;
}
