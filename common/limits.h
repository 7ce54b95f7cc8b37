/* Every bound of the system, in one place, each with its reason. Configuration may lower a bound
 * marked "ceiling"; nothing may exceed it. The .fbs attribute `max_len` repeats those that a
 * message carries; the generator checks nothing here, the wire tests compare them. */
#ifndef QN_COMMON_LIMITS_H
#define QN_COMMON_LIMITS_H

/* Text */
#define QN_ERR_TEXT_MAX 512 /* one log line */
#define QN_NAME_MAX 64      /* identifiers: services, metrics, policies, kernels */
#define QN_PATH_MAX 1024    /* file paths in configuration */
#define QN_ENDPOINT_MAX 256 /* zmq endpoints; sun_path itself allows 107 bytes */
#define QN_REASON_MAX 160   /* a policy's reason text: one line of `quintet sniff` */

/* Wire */
#define QN_FRAME_BYTES_MAX (16u << 20)  /* one message; a 1M-token prompt is 4 MiB of ids */
#define QN_PROMPT_TOKENS_MAX (1u << 20) /* ceiling: token ids of one prompt */
#define QN_TEXT_BYTES_MAX (8u << 20)    /* ceiling: prompt text; also the HTTP body ceiling */
#define QN_PEERS_MAX 64                 /* connections one daemon accepts: several of each service */
#define QN_LINK_WINDOW 1024             /* messages a sender may have unacknowledged on one link */
#define QN_OUTBOX_MAX 4096              /* messages held for a peer that gave no credit */
#define QN_TAKE_MAX 64                  /* messages taken from a socket before the loop decides */

/* Serving */
#define QN_MODEL_NAME_MAX 257    /* of model.id, NUL included; as in encode.fbs */
#define QN_REQUESTS_MAX 4096     /* ceiling: requests in the ledger, waiting ones included */
#define QN_SLOTS_MAX 1024        /* ceiling: sequences running at once */
#define QN_STEP_TOKENS_MAX 16384 /* ceiling: tokens of one step */
#define QN_STOP_STRINGS_MAX 16   /* OpenAI allows 4, vLLM has no limit; 16 keeps the scan cheap */
#define QN_STOP_STRING_BYTES_MAX 256
#define QN_STOP_IDS_MAX 32                         /* stop_token_ids of a request; end-of-sequence ids of a model */
#define QN_SLOT_STOP_IDS_MAX (2 * QN_STOP_IDS_MAX) /* of a slot: both together, so that neither pushes the other out */
#define QN_TOP_LOGPROBS_MAX 20                     /* OpenAI's limit */
#define QN_LOGIT_BIAS_MAX 300                      /* OpenAI's limit; allowed_token_ids and bad_words count too */
#define QN_LOGPROB_IDS_MAX 20                      /* token_ids_logprob: as many as may be asked for by rank */
#define QN_ALTERNATIVES_MAX (QN_TOP_LOGPROBS_MAX + QN_LOGPROB_IDS_MAX) /* of one token's report: both together */
#define QN_BAD_SEQUENCE_TOKENS_MAX 16 /* of one bad word of several tokens: a slot remembers as many generated ones */
#define QN_BAD_IDS_MAX 512            /* of all bad words of several tokens together */
#define QN_SEQUENCE_END 0x80000000u   /* flag of the last id of a bad word among several */
#define QN_LOGIT_FORBIDDEN (-1e30f)   /* bias of an id that may not be generated; finite: sums stay numbers */
#define QN_MASKS_MAX 64               /* rules of a request's attention masks */
#define QN_MASK_POSITIONS_MAX (1u << 17) /* of a sequence under masks: one thread holds a row's scores */
#define QN_TAPS_MAX 512                  /* points of a request that are read or written: a few of every layer */
#define QN_TAP_VALUES_MAX 65536          /* numbers that a request writes at them: 256 KiB in the ledger */
#define QN_CHOICES_MAX 128               /* n and best_of; OpenAI's limit */
#define QN_PROMPTS_MAX 1024              /* prompts of one HTTP request */
#define QN_REQUEST_BYTES_MAX (32u << 20) /* prompts times choices of one HTTP request: what is sent on for it */
#define QN_REQUEST_SCORES_MAX (8u << 20) /* log-probabilities of prompt tokens in one reply: about 1 GiB of JSON */

/* Timing, in nanoseconds */
#define QN_HEARTBEAT_NS 250000000ull
#define QN_LIVENESS 4 /* heartbeats missed before a peer is suspected */

/* Models */
#define QN_LAYERS_MAX 256
#define QN_VOCAB_MAX (1u << 20)
#define QN_TENSORS_MAX 65536 /* a 256-expert MoE with 64 layers has about 50,000 */

/* Statistics page */
#define QN_METRICS_MAX 256 /* per daemon */

#endif
