/* What is this?      Post-processors from JSON, as one flat list of ids around the text.
 * State owned:       none.
 * Must never:        put in an id the template does not name.
 * Read next:         tokenizer_data.h (token_template_t). */
#include <stdio.h>

#include "services/tokenizer/json/component_json.h"

#define WHERE_BYTES 160

static qn_err_t append(token_template_t *template, uint32_t item, const char *where)
{
    if (template->count == TEMPLATE_ITEMS_MAX)
        return qn_fail(QN_ERR_LIMIT, "%s: the template has more than %d items", where, TEMPLATE_ITEMS_MAX);
    template->items[template->count++] = item;
    return QN_OK;
}

static qn_err_t append_id(token_template_t *template, const json_t *id, const char *where)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= TEMPLATE_TEXT)
        return qn_fail(QN_ERR_INVALID, "%s: must be a token id", where);
    return append(template, (uint32_t)json_integer_value(id), where);
}

static qn_err_t append_special(token_template_t *template, const json_t *json, const char *where, const char *name)
{
    char path[WHERE_BYTES];
    snprintf(path, sizeof path, "%.40s.special_tokens[\"%.64s\"].ids", where, name);
    const json_t *ids = json_object_get(json_object_get(json_object_get(json, "special_tokens"), name), "ids");
    if (!json_is_array(ids)) return qn_fail(QN_ERR_INVALID, "%s: must be an array", path);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < json_array_size(ids); i++)
        err = append_id(template, json_array_get(ids, i), path);
    return err;
}

/* `inner` is what earlier processors of a Sequence made of the text. */
static qn_err_t append_text(token_template_t *template, const token_template_t *inner, const char *where)
{
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < inner->count; i++)
        err = append(template, inner->items[i], where);
    return err;
}

static qn_err_t load_template(const json_t *json, const char *where, const token_template_t *inner,
                              token_template_t *out)
{
    const json_t *single = json_object_get(json, "single");
    if (!json_is_array(single)) return qn_fail(QN_ERR_INVALID, "%s.single: must be an array", where);
    qn_err_t err = QN_OK;
    for (size_t i = 0; !err && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *id =
            json_string_value(json_object_get(special ? special : json_object_get(piece, "Sequence"), "id"));
        if (!id || (!special && strcmp(id, "A") != 0))
            return qn_fail(QN_ERR_INVALID, "%s.single[%zu]: must be a SpecialToken with an id or the Sequence A", where,
                           i);
        err = special ? append_special(out, json, where, id) : append_text(out, inner, where);
    }
    return err;
}

/* BertProcessing and RobertaProcessing: cls, the text, sep; each given as [text, id]. */
static qn_err_t load_cls_sep(const json_t *json, const char *where, const token_template_t *inner,
                             token_template_t *out)
{
    char path[WHERE_BYTES];
    snprintf(path, sizeof path, "%.120s.cls[1]", where);
    qn_err_t err = append_id(out, json_array_get(json_object_get(json, "cls"), 1), path);
    if (!err) err = append_text(out, inner, where);
    snprintf(path, sizeof path, "%.120s.sep[1]", where);
    return err ? err : append_id(out, json_array_get(json_object_get(json, "sep"), 1), path);
}

static qn_err_t load(const json_t *json, const char *where, int depth, token_template_t *template)
{
    const char *type = NULL;
    token_template_t out = {.count = 0};
    qn_err_t err = component_json_type(json, where, &type);
    if (err) return err;
    if (strcmp(type, "ByteLevel") == 0) return QN_OK; /* trims offsets only */
    if (strcmp(type, "Sequence") == 0) {
        const json_t *items = json_object_get(json, "processors");
        if (!json_is_array(items) || depth > 4)
            return qn_fail(QN_ERR_INVALID, "%s.processors: must be an array, at most 4 deep", where);
        for (size_t i = 0; !err && i < json_array_size(items); i++) {
            char path[WHERE_BYTES];
            snprintf(path, sizeof path, "%.120s.processors[%zu]", where, i);
            err = load(json_array_get(items, i), path, depth + 1, template);
        }
        return err;
    }
    if (strcmp(type, "TemplateProcessing") == 0)
        err = load_template(json, where, template, &out);
    else if (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)
        err = load_cls_sep(json, where, template, &out);
    else
        return component_json_unsupported(where, "post-processor", type);
    if (!err) *template = out;
    return err;
}

qn_err_t template_json_load(const json_t *json, token_template_t *template)
{
    *template = (token_template_t){.items = {TEMPLATE_TEXT}, .count = 1};
    return json && !json_is_null(json) ? load(json, "post_processor", 0, template) : QN_OK;
}
