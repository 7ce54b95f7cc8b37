/* What is this?      A walk through two JSON values side by side.
 * State owned:       none.
 * Must never:        compare by text: 1 and 1.0 are equal.
 * Read next:         debug_requests.c. */
#include "services/frontend/research/json_diff.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define PATH_MAX_BYTES 512

typedef struct {
    json_t *rows;
    uint32_t max, left_out;
    char path[PATH_MAX_BYTES];
} diff_t;

static void add_row(diff_t *diff, const json_t *a, const json_t *b)
{
    if (json_array_size(diff->rows) >= diff->max) {
        diff->left_out++;
        return;
    }
    json_t *row = json_object();
    json_object_set_new(row, "path", json_string(diff->path));
    json_object_set_new(row, "a", a ? json_deep_copy(a) : json_null());
    json_object_set_new(row, "b", b ? json_deep_copy(b) : json_null());
    if (json_is_integer(a) && json_is_integer(b))
        json_object_set_new(row, "delta", json_integer(json_integer_value(b) - json_integer_value(a)));
    else if (json_is_number(a) && json_is_number(b))
        json_object_set_new(row, "delta", json_real(json_number_value(b) - json_number_value(a)));
    json_array_append_new(diff->rows, row);
}

static void compare(diff_t *diff, const json_t *a, const json_t *b);

/* The member or element of that name; the path is as it was afterwards. */
static void compare_at(diff_t *diff, const char *step, const json_t *a, const json_t *b)
{
    size_t length = strlen(diff->path);
    const char *dot = length && step[0] != '[' ? "." : "";
    snprintf(diff->path + length, sizeof diff->path - length, "%s%s", dot, step);
    compare(diff, a, b);
    diff->path[length] = '\0';
}

static void compare_objects(diff_t *diff, const json_t *a, const json_t *b)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, key, value) compare_at(diff, key, value, json_object_get(b, key));
    json_object_foreach((json_t *)(uintptr_t)b, key, value)
    {
        if (!json_object_get(a, key)) compare_at(diff, key, NULL, value);
    }
}

static void compare_arrays(diff_t *diff, const json_t *a, const json_t *b)
{
    size_t longer = json_array_size(a) > json_array_size(b) ? json_array_size(a) : json_array_size(b);
    for (size_t i = 0; i < longer; i++) {
        char step[32];
        snprintf(step, sizeof step, "[%zu]", i);
        compare_at(diff, step, json_array_get(a, i), json_array_get(b, i));
    }
}

static bool are_equal(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    return a && b && json_equal(a, b);
}

static void compare(diff_t *diff, const json_t *a, const json_t *b)
{
    if (json_is_object(a) && json_is_object(b))
        compare_objects(diff, a, b);
    else if (json_is_array(a) && json_is_array(b))
        compare_arrays(diff, a, b);
    else if (!are_equal(a, b))
        add_row(diff, a, b);
}

json_t *json_diff(const json_t *a, const json_t *b, uint32_t max, uint32_t *ret_left_out)
{
    diff_t diff = {.rows = json_array(), .max = max};
    compare(&diff, a, b);
    *ret_left_out = diff.left_out;
    return diff.rows;
}
