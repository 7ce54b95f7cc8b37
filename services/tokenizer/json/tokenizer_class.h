/* What `tokenizer_class` changes: the defaults and the habits of the fast tokenizer classes of transformers 4.57, which
 * is what vLLM loads. Classes that change nothing, and those for models that Quintet does not run, are read as
 * PreTrainedTokenizerFast. */
#ifndef QN_TOKENIZER_JSON_TOKENIZER_CLASS_H
#define QN_TOKENIZER_JSON_TOKENIZER_CLASS_H

#include <stdbool.h>

typedef enum {
    PREFIX_SPACE_OFF,     /* add_prefix_space is false unless the configuration says otherwise */
    PREFIX_SPACE_AS_FILE, /* tokenizer.json decides, unless the configuration does */
} prefix_space_t;

typedef struct {
    const char *name;      /* without "Fast" */
    bool builds_template;  /* add_bos_token and add_eos_token decide, not the post_processor of tokenizer.json */
    bool adds_bos;         /* the default of add_bos_token */
    bool defaults_special; /* special tokens given as strings are declared anew, not normalized */
    bool remakes_spaces;   /* add_prefix_space and legacy replace normalizer, pre-tokenizer and decoder */
    bool prefix_in_depth;  /* add_prefix_space: true reaches the members of a Sequence too */
    bool has_infill;       /* the four tokens of Code Llama are special as well */
    prefix_space_t prefix_space;
    const char *bos, *eos, *unk, *pad; /* defaults; NULL: none */
} tokenizer_class_t;

/* By the name in a configuration, with or without "Fast". Unknown names give PreTrainedTokenizer; *ret_known says. */
const tokenizer_class_t *tokenizer_class_by_name(const char *name, bool *ret_known);
/* By config.json's model_type; NULL when no class is tied to it. */
const tokenizer_class_t *tokenizer_class_by_model(const char *model_type);

#endif
