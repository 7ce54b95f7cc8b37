/* What a process holds of the host's memory, as /proc tells it: pages in use, and the regions of Quintet that it maps. */
#ifndef QN_FRONTEND_RESEARCH_PROCESS_MEMORY_H
#define QN_FRONTEND_RESEARCH_PROCESS_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/limits.h"

#define PROCESS_REGIONS_MAX 64

typedef struct {
    char name[QN_NAME_MAX];
    uint64_t bytes; /* of address space; pages come when they are touched */
} process_region_t;

typedef struct {
    uint64_t rss_bytes, peak_rss_bytes;
    uint64_t private_bytes, file_bytes,
        shared_bytes;                              /* of rss: its own, of files and programs, of regions and the like */
    process_region_t regions[PROCESS_REGIONS_MAX]; /* in host memory */
    size_t region_count;
} process_memory_t;

/* False: no such process, or not ours to look at. */
bool process_memory_read(uint32_t pid, process_memory_t *ret_memory);

/* Its two halves, for tests: the texts of /proc/PID/status and /proc/PID/maps, which end with a NUL. */
bool process_memory_parse_status(const char *text, process_memory_t *memory);
void process_memory_parse_maps(const char *text, process_memory_t *memory);

#endif
