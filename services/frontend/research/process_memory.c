/* What is this?      The reader of /proc/PID/status and /proc/PID/maps.
 * State owned:       none.
 * Must never:        count a region twice that lies in several pieces.
 * Read next:         proc(5), common/region/region_memfd.c (the names of regions). */
#include "services/frontend/research/process_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REGION_PREFIX "/memfd:quintet."
#define FILE_BYTES_MAX (4u << 20) /* maps of a process with tens of thousands of mappings */

/* "VmRSS:     1784 kB". False: the line is not there. */
static bool read_kilobytes(const char *text, const char *name, uint64_t *ret_bytes)
{
    size_t length = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n'), line += line != NULL) {
        if (strncmp(line, name, length) != 0 || line[length] != ':') continue;
        *ret_bytes = strtoull(line + length + 1, NULL, 10) * 1024;
        return true;
    }
    return false;
}

bool process_memory_parse_status(const char *text, process_memory_t *memory)
{
    return read_kilobytes(text, "VmRSS", &memory->rss_bytes) &&
           read_kilobytes(text, "VmHWM", &memory->peak_rss_bytes) &&
           read_kilobytes(text, "RssAnon", &memory->private_bytes) &&
           read_kilobytes(text, "RssFile", &memory->file_bytes) &&
           read_kilobytes(text, "RssShmem", &memory->shared_bytes);
}

static process_region_t *region_named(process_memory_t *memory, const char *name, size_t length)
{
    for (size_t i = 0; i < memory->region_count; i++)
        if (strncmp(memory->regions[i].name, name, length) == 0 && !memory->regions[i].name[length])
            return &memory->regions[i];
    if (memory->region_count == PROCESS_REGIONS_MAX) return NULL;
    process_region_t *region = &memory->regions[memory->region_count++];
    *region = (process_region_t){0};
    memcpy(region->name, name, length);
    return region;
}

/* "7f633be00000-7f637be00000 rw-s 00000000 00:01 71535    /memfd:quintet.kv (deleted)" */
static void parse_mapping(const char *line, size_t bytes, process_memory_t *memory)
{
    uint64_t begin, end;
    const char *name = memmem(line, bytes, REGION_PREFIX, strlen(REGION_PREFIX));
    if (!name || sscanf(line, "%" SCNx64 "-%" SCNx64, &begin, &end) != 2 || end < begin) return;
    name += strlen(REGION_PREFIX);
    size_t length = strcspn(name, " \n");
    if (length == 0 || length >= QN_NAME_MAX) return;
    process_region_t *region = region_named(memory, name, length);
    if (region) region->bytes += end - begin;
}

void process_memory_parse_maps(const char *text, process_memory_t *memory)
{
    while (*text) {
        size_t bytes = strcspn(text, "\n");
        parse_mapping(text, bytes, memory);
        text += bytes + (text[bytes] == '\n');
    }
}

/* Returns owned, ends with a NUL; NULL: it cannot be read. */
static char *read_proc(uint32_t pid, const char *file)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%" PRIu32 "/%s", pid, file);
    FILE *stream = fopen(path, "re");
    if (!stream) return NULL;
    size_t used = 0, room = 64 * 1024;
    char *text = malloc(room);
    while (text && used < FILE_BYTES_MAX) {
        size_t got = fread(text + used, 1, room - used - 1, stream);
        if (got == 0) break;
        used += got;
        if (used + 1 < room) continue;
        char *larger = realloc(text, room *= 2);
        if (!larger) break;
        text = larger;
    }
    if (text) text[used] = '\0';
    fclose(stream);
    return text;
}

bool process_memory_read(uint32_t pid, process_memory_t *ret_memory)
{
    *ret_memory = (process_memory_t){0};
    char *status = read_proc(pid, "status"), *maps = read_proc(pid, "maps");
    bool good = status && process_memory_parse_status(status, ret_memory);
    if (maps) process_memory_parse_maps(maps, ret_memory);
    free(status);
    free(maps);
    return good;
}
