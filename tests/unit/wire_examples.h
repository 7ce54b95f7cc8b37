/* The example messages of schemas/ for the wire tests, and walks over any message by its descriptors. */
#ifndef QN_TESTS_UNIT_WIRE_EXAMPLES_H
#define QN_TESTS_UNIT_WIRE_EXAMPLES_H

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/limits.h"
#include "common/wire/wire.h"

/* "StepPlan" -> "schemas/step_plan.json"; "MemoryUsage" -> "schemas/memory/memory_usage.json" */
static inline void example_path(const qn_wire_type_t *type, char *path, size_t room)
{
    char name[128];
    size_t used = 0;
    for (const char *c = type->name; *c && used + 2 < sizeof name; c++) {
        if (isupper((unsigned char)*c) && c > type->name && islower((unsigned char)c[-1])) name[used++] = '_';
        name[used++] = (char)tolower((unsigned char)*c);
    }
    name[used] = '\0';
    snprintf(path, room, "schemas/%s.json", name);
    for (size_t i = 1; i < qn_service_enum.count && access(path, R_OK) != 0; i++)
        snprintf(path, room, "schemas/%s/%s.json", qn_service_enum.names[i], name);
}

/* Returns owned. */
static inline json_t *example_json(const qn_wire_type_t *type)
{
    char path[256];
    example_path(type, path, sizeof path);
    json_error_t where;
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (!json) fail_msg("%s:%d: %s", path, where.line, where.text);
    return json;
}

/* The example's frame, in the arena. */
static inline const uint8_t *example_frame(const qn_wire_type_t *type, qn_arena_t *arena, size_t *ret_bytes)
{
    const uint8_t *frame = NULL;
    json_t *json = example_json(type);
    qn_err_t err = qn_wire_from_json(type, json, arena, &frame, ret_bytes);
    json_decref(json);
    if (err) fail_msg("%s: %s", type->name, qn_err_text());
    return frame;
}

/* The example as its C struct, in the arena, with everything it points to. */
static inline void *example_message(const qn_wire_type_t *type, qn_arena_t *arena)
{
    size_t bytes;
    const uint8_t *frame = example_frame(type, arena, &bytes);
    void *message = qn_arena_alloc(arena, type->struct_bytes, 16);
    if (qn_wire_decode(type, frame, bytes, arena, message)) fail_msg("%s: %s", type->name, qn_err_text());
    return message;
}

static inline const qn_wire_field_t *field_named(const qn_wire_type_t *type, const char *name)
{
    for (size_t i = 0; i < type->field_count; i++)
        if (strcmp(type->fields[i].name, name) == 0) return &type->fields[i];
    fail_msg("%s has no field %s", type->name, name);
    return NULL;
}

#define EACH_MESSAGE(type)                                                         \
    for (int type##_number = 1; type##_number < QN_MESSAGE_COUNT; type##_number++) \
        for (const qn_wire_type_t *type = qn_wire_type((qn_message_type_t)type##_number); type; type = NULL)

#endif
