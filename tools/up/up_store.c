/* What is this?      A bounded set of named descriptors.
 * State owned:       the descriptors.
 * Must never:        read from or write to one of them.
 * Read next:         up_child.c, which hands them to the next life of the service. */
#include "tools/up/up_store.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool up_store_name_is_valid(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length >= UP_FD_NAME_MAX) return false;
    for (const char *at = name; *at; at++) {
        if ((unsigned char)*at < 0x20 || (unsigned char)*at >= 0x7f || *at == ':') return false;
    }
    return true;
}

/* The same regular file (a memfd is one) or socket. Others share an inode and are different things: the two ends of a
 * pipe, all eventfds. */
static bool is_same_file(int a, int b)
{
    struct stat x, y;
    if (fstat(a, &x) != 0 || fstat(b, &y) != 0) return false;
    return (S_ISREG(x.st_mode) || S_ISSOCK(x.st_mode)) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

up_store_outcome_t up_store_add(up_store_t *store, int fd, const char *name)
{
    for (size_t i = 0; i < store->count; i++) {
        if (!is_same_file(store->items[i].fd, fd)) continue;
        close(fd);
        return UP_STORE_KNOWN;
    }
    if (store->count == UP_STORE_FDS_MAX) {
        close(fd);
        return UP_STORE_FULL;
    }
    store->items[store->count].fd = fd;
    snprintf(store->items[store->count].name, UP_FD_NAME_MAX, "%s", up_store_name_is_valid(name) ? name : "stored");
    store->count++;
    return UP_STORE_KEPT;
}

size_t up_store_remove(up_store_t *store, const char *name)
{
    size_t kept = 0;
    for (size_t i = 0; i < store->count; i++) {
        if (strcmp(store->items[i].name, name) == 0)
            close(store->items[i].fd);
        else
            store->items[kept++] = store->items[i];
    }
    size_t removed = store->count - kept;
    store->count = kept;
    return removed;
}

void up_store_clear(up_store_t *store)
{
    for (size_t i = 0; i < store->count; i++)
        close(store->items[i].fd);
    store->count = 0;
}

void up_store_names(const up_store_t *store, char *buffer, size_t capacity)
{
    size_t used = 0;
    buffer[0] = '\0';
    for (size_t i = 0; i < store->count; i++) {
        int more = snprintf(buffer + used, capacity - used, "%s%s", i ? ":" : "", store->items[i].name);
        if (more < 0 || (size_t)more >= capacity - used) return;
        used += (size_t)more;
    }
}
