/* What is this?      The strict parser of request heads.
 * State owned:       none.
 * Must never:        repair: a byte that RFC 9112 does not allow is refused, also where it lets a server be lenient.
 * Read next:         http_chunked.c for bodies, http_connection.c, which feeds both; RFC 9110 and 9112. */
#include "services/frontend/http/http_head.h"

#include <string.h>
#include <strings.h>

static bool bad(http_head_t *head, int status, const char *reason)
{
    head->status = status;
    head->reason = reason;
    return false;
}

/* ---- characters ---- */

static bool is_token(unsigned char c) /* RFC 9110 5.6.2 */
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in place; false: a "%" without two digits, or a NUL. */
static bool percent_decode(char *text, bool plus_is_space)
{
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (plus_is_space && *from == '+') {
            *to++ = ' ';
        } else if (*from == '%') {
            int high = hex_digit((unsigned char)from[1]);
            int low = high < 0 ? -1 : hex_digit((unsigned char)from[2]);
            if (low < 0 || (high == 0 && low == 0)) return false;
            *to++ = (char)(high * 16 + low);
            from += 2;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
    return true;
}

/* ---- lines ---- */

size_t http_head_end(const char *text, size_t bytes, size_t *scanned)
{
    for (size_t at = *scanned; at < bytes; at++) {
        const char *found = memchr(text + at, '\n', bytes - at);
        if (!found) break;
        at = (size_t)(found - text);
        bool is_bare = at == 0 || text[at - 1] != '\r'; /* what comes behind does not matter: it will be refused */
        if (is_bare || (at >= 3 && memcmp(found - 3, "\r\n\r\n", 4) == 0)) return at + 1;
    }
    *scanned = bytes;
    return 0;
}

/* The next line, NUL-terminated; its CRLF becomes NULs. NULL: no more, or a bare CR, bare LF or NUL in it. */
static char *next_line(char **at, const char *end, http_head_t *head)
{
    char *line = *at;
    char *stop = line;
    while (stop < end && *stop != '\r' && *stop != '\n' && *stop != '\0')
        stop++;
    if (stop + 2 > end || stop[0] != '\r' || stop[1] != '\n') {
        bad(head, 400, "A line of the head must end with CR LF and hold no other CR, LF or NUL.");
        return NULL;
    }
    stop[0] = stop[1] = '\0';
    *at = stop + 2;
    return line;
}

/* ---- request line ---- */

static bool read_query(http_head_t *head, char *query)
{
    while (query && *query) {
        char *next = strchr(query, '&');
        if (next) *next++ = '\0';
        char *value = strchr(query, '=');
        if (value) *value++ = '\0';
        if (head->query_count == HTTP_QUERY_MAX) return bad(head, 400, "The query has more than 32 parts.");
        if (!percent_decode(query, true) || (value && !percent_decode(value, true)))
            return bad(head, 400, "The query holds a % that is not followed by two hexadecimal digits, or %00.");
        head->query[head->query_count++] = (http_field_t){.name = query, .value = value ? value : ""};
        query = next;
    }
    return true;
}

/* "/path?query", "http://host/path?query" (RFC 9112 3.2.2), or "*" for OPTIONS. */
static bool read_target(http_head_t *head, char *target)
{
    for (const char *c = target; *c; c++) {
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7F || *c == '#')
            return bad(head, 400, "The request target holds a character that must be percent-encoded.");
    }
    if (strncasecmp(target, "http://", 7) == 0 || strncasecmp(target, "https://", 8) == 0) {
        char *path = strchr(target + 8, '/');
        if (!path) return bad(head, 400, "The request target has no path.");
        target = path;
    }
    if (strcmp(target, "*") == 0 && strcmp(head->method, "OPTIONS") == 0) {
        head->path = target;
        return true;
    }
    if (target[0] != '/') return bad(head, 400, "The request target must begin with \"/\".");
    char *query = strchr(target, '?');
    if (query) *query++ = '\0';
    if (!percent_decode(target, false))
        return bad(head, 400, "The path holds a % that is not followed by two hexadecimal digits, or %00.");
    head->path = target;
    return read_query(head, query);
}

static bool read_version(http_head_t *head, const char *version)
{
    bool well_formed = strncmp(version, "HTTP/", 5) == 0 && version[5] >= '0' && version[5] <= '9' &&
                       version[6] == '.' && version[7] >= '0' && version[7] <= '9' && version[8] == '\0';
    if (!well_formed) return bad(head, 400, "The request line must be: METHOD SP TARGET SP HTTP/1.1.");
    if (version[5] != '1') return bad(head, 505, "This server speaks HTTP/1.1 and HTTP/1.0.");
    head->is_http_1_0 = version[7] == '0';
    head->keep_alive = !head->is_http_1_0;
    return true;
}

static bool read_request_line(http_head_t *head, char *line)
{
    char *target = strchr(line, ' ');
    char *version = target ? strchr(target + 1, ' ') : NULL;
    if (!version) return bad(head, 400, "The request line must be: METHOD SP TARGET SP HTTP/1.1.");
    *target++ = '\0';
    *version++ = '\0';
    head->method = line;
    if (line[0] == '\0' || strlen(line) > HTTP_METHOD_BYTES_MAX)
        return bad(head, 400, "The method must have 1 to 32 characters.");
    for (const char *c = line; *c; c++) {
        if (!is_token((unsigned char)*c)) return bad(head, 400, "The method holds a character that it may not.");
    }
    if (strlen(target) > HTTP_TARGET_BYTES_MAX) return bad(head, 414, "The request target is longer than 8192 bytes.");
    return read_version(head, version) && read_target(head, target);
}

/* ---- fields ---- */

static bool read_field(http_head_t *head, char *line)
{
    if (line[0] == ' ' || line[0] == '\t') return bad(head, 400, "Header fields may not be folded over lines.");
    char *colon = line;
    while (is_token((unsigned char)*colon))
        colon++;
    if (*colon != ':' || colon == line)
        return bad(head, 400, "A header field must be NAME: VALUE, without a space before the colon.");
    char *value = colon + 1, *stop = value + strlen(value);
    *colon = '\0';
    value += strspn(value, " \t");
    while (stop > value && (stop[-1] == ' ' || stop[-1] == '\t'))
        *--stop = '\0';
    for (const char *c = value; *c; c++) {
        if (((unsigned char)*c < 0x20 && *c != '\t') || *c == 0x7F)
            return bad(head, 400, "A header field holds a control character.");
    }
    if (head->field_count == HTTP_FIELDS_MAX) return bad(head, 431, "The request has more than 100 header fields.");
    head->fields[head->field_count++] = (http_field_t){.name = line, .value = value};
    return true;
}

const char *http_head_field(const http_head_t *head, const char *name)
{
    for (uint32_t i = 0; i < head->field_count; i++) {
        if (strcasecmp(head->fields[i].name, name) == 0) return head->fields[i].value;
    }
    return NULL;
}

static uint32_t count_fields(const http_head_t *head, const char *name)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < head->field_count; i++)
        count += strcasecmp(head->fields[i].name, name) == 0;
    return count;
}

/* One of the elements of a comma-separated list, any case. */
static bool list_has(const char *list, const char *wanted)
{
    size_t length = strlen(wanted);
    while (*list) {
        list += strspn(list, ", \t");
        size_t bytes = strcspn(list, ", \t");
        if (bytes == length && strncasecmp(list, wanted, length) == 0) return true;
        list += bytes;
    }
    return false;
}

static bool check_host(http_head_t *head)
{
    uint32_t hosts = count_fields(head, "host");
    if (hosts > 1 || (hosts == 0 && !head->is_http_1_0))
        return bad(head, 400, "A request has exactly one Host field (RFC 9112 3.2).");
    const char *host = http_head_field(head, "host");
    for (; host && *host; host++) { /* uri-host [":" port]: RFC 3986 3.2.2 */
        bool allowed = (unsigned char)*host < 0x7F && (is_token((unsigned char)*host) || strchr("()[]:;=,", *host)) &&
                       !strchr("#^`|", *host);
        if (!allowed || *host == ',') return bad(head, 400, "The Host field is no host name.");
    }
    return true;
}

/* How long the body is, in exactly one way (RFC 9112 6.3). */
static bool read_framing(http_head_t *head)
{
    uint32_t lengths = count_fields(head, "content-length"), codings = count_fields(head, "transfer-encoding");
    const char *length = http_head_field(head, "content-length");
    if (lengths + codings > 1)
        return bad(head, 400, "A request has one Content-Length or one Transfer-Encoding, not both and not two.");
    if (codings == 1) {
        const char *coding = http_head_field(head, "transfer-encoding");
        if (head->is_http_1_0) return bad(head, 400, "HTTP/1.0 has no Transfer-Encoding.");
        head->chunked = strcasecmp(coding, "chunked") == 0;
        if (!head->chunked) return bad(head, 400, "The only Transfer-Encoding taken here is \"chunked\".");
    }
    if (length) {
        size_t digits = strspn(length, "0123456789");
        if (digits == 0 || digits > 18 || length[digits] != '\0')
            return bad(head, 400, "Content-Length must be one decimal number.");
        for (; *length; length++)
            head->content_length = head->content_length * 10 + (uint64_t)(*length - '0');
    }
    return true;
}

static bool read_connection(http_head_t *head)
{
    for (uint32_t i = 0; i < head->field_count; i++) {
        if (strcasecmp(head->fields[i].name, "connection") != 0) continue;
        if (head->is_http_1_0 && list_has(head->fields[i].value, "keep-alive")) head->keep_alive = true;
        if (list_has(head->fields[i].value, "close")) {
            head->keep_alive = false;
            break;
        }
    }
    const char *expect = http_head_field(head, "expect");
    if (!expect || head->is_http_1_0) return true;
    if (strcasecmp(expect, "100-continue") != 0) return bad(head, 417, "The only expectation known is 100-continue.");
    head->expects_continue = true;
    return true;
}

/* ---- entry ---- */

http_head_outcome_t http_head_parse(char *text, size_t bytes, http_head_t *ret_head)
{
    char *at = text;
    const char *end = text + bytes;
    *ret_head = (http_head_t){.method = "", .path = ""};
    char *line = next_line(&at, end, ret_head);
    bool good = line && read_request_line(ret_head, line);
    while (good) {
        line = next_line(&at, end, ret_head);
        if (!line) return HTTP_HEAD_BAD;
        if (line[0] == '\0') break;
        good = read_field(ret_head, line);
    }
    good = good && check_host(ret_head) && read_framing(ret_head) && read_connection(ret_head);
    return good ? HTTP_HEAD_COMPLETE : HTTP_HEAD_BAD;
}
