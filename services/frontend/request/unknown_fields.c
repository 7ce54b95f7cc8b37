/* What is this?      The list of members that a route does not know.
 * State owned:       none.
 * Must never:        let a byte through that may not stand in a header field.
 * Read next:         generation_parse.c and query_body.c, which ask; routes.c, which tells the client. */
#include "services/frontend/request/unknown_fields.h"

#include <stdio.h>
#include <string.h>

static void add_name(unknown_fields_t *unknown, const char *name)
{
    size_t used = strlen(unknown->names), room = sizeof unknown->names;
    if (unknown->count++ == 0) snprintf(unknown->first, sizeof unknown->first, "%s", name);
    if (strcmp(unknown->names + (used < 3 ? 0 : used - 3), "...") == 0) return;
    bool fits = used + strlen(name) + 2 + sizeof ", ..." <= room;
    snprintf(unknown->names + used, room - used, "%s%s", used ? ", " : "", fits ? name : "...");
}

void unknown_fields_add(unknown_fields_t *unknown, const json_t *object, const char *prefix,
                        bool (*is_known)(const char *name))
{
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (is_known(key)) continue;
        char name[QN_NAME_MAX + 1];
        snprintf(name, sizeof name, "%s%s", prefix, key);
        for (char *c = name; *c; c++) {
            if (*c <= 0x20 || *c >= 0x7F || *c == ',') *c = '?';
        }
        add_name(unknown, name);
    }
}
