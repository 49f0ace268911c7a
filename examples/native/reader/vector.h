/* Micro-vectors: text forms, frames and raw payloads (docs/FORMAT.md, "Text", "Frames", "Applying a vector"). */
#ifndef VECTOR_H
#define VECTOR_H

#include <stddef.h>
#include <stdint.h>

enum { TAG_NONE = -1, TAG_CRC32, TAG_HMAC, TAG_ED25519 };

/* What a device trusts. A key that it does not have is NULL, and its tags are refused. */
typedef struct {
    const uint8_t *hmac_key;
    size_t hmac_key_size;
    int (*ed25519)(const uint8_t *message, size_t size, const uint8_t tag[64]); /* 1: it verifies */
    int require;                                                                /* TAG_NONE, or at least which */
    const char *stream;                                                         /* its name; NULL: without one */
    int today;                                                                  /* days since 2026-01-01 */
} trust;

typedef struct {
    int dtype; /* 0 fp32, 1 bf16, 2 fp16, 3 int8 */
    int tag;
    int sequence; /* -1: a raw payload has none */
    int version;  /* 0: a raw payload has none */
    int until;    /* -1: it has no last day */
} vector_head;

/* All return NULL, or what was wrong, and then nothing of their output counts. */

/* Text to bytes; `out` has room for 3 bytes for every 4 characters of `text`, rounded up: (3 * size + 3) / 4. */
const char *text_decode(const char *text, size_t size, uint8_t *out, size_t *out_size);

/* Check a frame or raw payload of n values for the basis with this digest; `values` has room for n. */
const char *vector_check(const uint8_t *data, size_t size, size_t n, const uint8_t digest[32],
                         const trust *trusted, vector_head *head, float *values);

#endif
