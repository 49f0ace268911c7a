/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tinylora.h, tinylora.c: vectors of tinylora-edge on a phone or a board. C99, no dependency but a C library.
 *
 * A bundle is a model, base.gguf, and basis.gguf beside it: the factors A and B of each adapted layer. A vector travels
 * as a frame, 27 bytes for 13 numbers, 13 kB for 13,440. This library checks a frame, makes R of it, a p x q matrix a
 * layer, and has llama.cpp compute with W' = W + B R A.
 *
 *     tinylora_error why;
 *     tinylora_bases *bases;
 *     tinylora_vector vector;
 *     tinylora_policy policy = {0};                      // any frame with a checksum
 *     struct llama_adapter_lora *adapter;
 *     const tinylora_vector *active = NULL;              // the base
 *
 *     if (tinylora_open(&bases, "basis.gguf", "base.gguf", &why)) return complain(why.text);
 *     if (tinylora_adapter(&adapter, model, bases, NULL, NULL, &why)) return complain(why.text);
 *     tinylora_rows rows = {bases, &active, NULL, {""}};
 *     parameters.cb_eval = tinylora_eval;
 *     parameters.cb_eval_user_data = &rows;
 *     context = llama_init_from_model(model, parameters);
 *     llama_set_adapters_lora(context, &adapter, 1, &one);       // float one = 1
 *
 *     if (tinylora_read(&vector, bases, frame, size, &policy, &why)) return complain(why.text);
 *     active = &vector;                                          // the swap
 *     llama_memory_clear(llama_get_memory(context), true);       // it holds what the last vector computed
 *     tinylora_accept(&policy, &vector, &why);           // no older frame any more: now keep policy.mark on disk
 *     if (llama_decode(context, batch) || *rows.why.text) return complain(rows.why.text);
 *
 * Build: add both files to your app, and -lm. Define TINYLORA_LLAMA for the last two functions, which take llama.h, and
 * TINYLORA_NO_MMAP where files cannot be mapped: they are then read into memory. (Windows defines it by itself.)
 *
 * Errors: a call that can fail returns a `tinylora_status`, 0 for success. Where it fails, `why` (which may be NULL) has
 * a sentence with what was found and what was expected, its output is empty, and nothing was changed: the model goes on
 * with the vector that it had.
 *
 * Threads: there are no globals. Any number of threads may read one `tinylora_bases`; a policy is for one at a time.
 *
 * The formats are in docs/FORMAT.md. R is the same everywhere, bit for bit, so the compiler must keep to IEEE 754:
 * -ffast-math, x87 arithmetic and big-endian machines are refused when it is compiled.
 */
#ifndef TINYLORA_H
#define TINYLORA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    TINYLORA_OK,
    TINYLORA_E_ARGUMENT,  /* the caller's: a key that is too short, a name that is too long, too little room */
    TINYLORA_E_SYSTEM,    /* a file that cannot be read, no memory */
    TINYLORA_E_BASIS,     /* basis.gguf is damaged, or none at all */
    TINYLORA_E_BASE,      /* another model than the factors were exported for, or one without their layers */
    TINYLORA_E_FRAME,     /* bytes that are no frame, or not of the length that they state */
    TINYLORA_E_UNKNOWN,   /* a frame for a basis that is not among those of this model */
    TINYLORA_E_CHECKSUM,  /* damaged on its way, or of another user */
    TINYLORA_E_SIGNATURE, /* no key of the policy made it */
    TINYLORA_E_EXPIRED,   /* its last day is over */
    TINYLORA_E_VALUES,    /* not finite, or beyond the policy's norm */
    TINYLORA_E_ROLLBACK   /* older than one that was accepted, or another one with its sequence */
} tinylora_status;

typedef struct {
    char text[400]; /* a line without its end; ASCII, but for a path */
} tinylora_error;

typedef enum { TINYLORA_CRC32, TINYLORA_HMAC, TINYLORA_ED25519 } tinylora_tag;
typedef enum {
    TINYLORA_FP32,
    TINYLORA_BF16,
    TINYLORA_FP16,
    TINYLORA_INT8,
    TINYLORA_Q2, /* from here on with so many bits a number, and a scale a column of R */
    TINYLORA_Q4
} tinylora_dtype;

/* ---- The bundle ---- */

/* The factors of a model, and all bases that its vectors may be of. Read the fields; change none. */
typedef struct {
    uint32_t modules;   /* M, adapted layers */
    uint32_t rank;      /* Q, rows of each A: a vector acts on the leading q <= Q */
    uint32_t outputs;   /* P, columns of B, fewer in small layers: and on the leading p <= P */
    uint32_t bases;     /* what `tinylora_basis_at` counts to */
    uint8_t digest[32]; /* of the factors */
    struct tinylora_own *own;
} tinylora_bases;

/* What a vector is a point of: factors, and a linear map from n numbers to R. */
typedef struct {
    char descriptor[128]; /* "entries rank=2", "random rank=2 seed=42 groups=13 u=1 tying=tiled", ... */
    uint32_t n;           /* numbers of a vector */
    uint32_t outputs;     /* p: R has modules * p * q floats, row by row, a module after the other; zeros where B ends */
    uint32_t rank;        /* q */
    uint8_t digest[32];   /* its first 4 bytes are in each frame */
} tinylora_basis;

/* Open basis.gguf, check its digests, and check that base.gguf is a model that it was exported for: shapes, and the
 * first and last 4 kB of each adapted layer's data, so milliseconds. basis.gguf stays mapped until `tinylora_close`, and
 * may be larger than memory. Do not write to the file meanwhile: replace it by renaming. `base_path` is NULL for an app
 * that gives R to another engine; `tinylora_adapter` then refuses. */
tinylora_status tinylora_open(tinylora_bases **out, const char *basis_path, const char *base_path,
                              tinylora_error *why);
void tinylora_close(tinylora_bases *bases); /* NULL is fine */

/* Basis number `index` < bases->bases, in the order in which frames are looked up: entries of rank 1 to Q, those that
 * the file has (learned ones), the paper's random ones of 1 to M numbers, and entries of p outputs and q inputs. */
tinylora_status tinylora_basis_at(const tinylora_bases *bases, uint32_t index, tinylora_basis *out,
                                  tinylora_error *why);

/* R of n numbers v of that basis, into `r`: modules * p * q floats. `tinylora_read` has done it; this is for an app
 * that makes vectors itself, by sliders say. The Frobenius norm of R is at most `max_norm`; 0 stands for 256. */
tinylora_status tinylora_r(const tinylora_bases *bases, uint32_t index, const float *v, double max_norm,
                           float *r, tinylora_error *why);

/* ---- Trust ---- */

/* What was accepted last; zeros: nothing. Keep it on disk, one for each (factors' digest, user, key or none). */
typedef struct {
    uint32_t sequence;
    uint8_t content[16]; /* stands for the vector; zeros under a checksum, where any of this sequence will do */
} tinylora_mark;

/* A sender who is trusted. */
typedef struct {
    tinylora_tag kind;    /* HMAC or ED25519 */
    const uint8_t *bytes; /* HMAC: the secret, at least 16 bytes. Ed25519: the public key, 32 bytes */
    size_t size;
    tinylora_mark mark; /* what was accepted last under it */
} tinylora_key;

/* Ed25519 (RFC 8032) is your platform's: CryptoKit's Curve25519.Signing.PublicKey, Conscrypt, libsodium's
 * crypto_sign_verify_detached. Returns 1 where the signature verifies, and 0 where it does not. */
typedef int (*tinylora_verify)(void *data, const uint8_t key[32], const uint8_t *message, size_t size,
                               const uint8_t signature[64]);

/* Which frames a device accepts. Zeros: those with a checksum, of the user without a name. */
typedef struct {
    const char *user;       /* whose vectors these are, UTF-8, at most 128 characters; NULL: without a name */
    tinylora_key *keys;     /* one of them has to have made a frame; NULL: a checksum is enough */
    size_t key_count;
    tinylora_verify verify; /* for Ed25519; NULL: such frames are refused */
    void *verify_data;      /* its first argument */
    int today;              /* days since 2026-01-01, UTC; 0: by the system's clock */
    double max_norm;        /* of R; 0: 256 (trained vectors have 0.1 to 80) */
    tinylora_mark mark;     /* what was accepted last of frames with a checksum */
} tinylora_policy;

/* ---- A vector ---- */

typedef struct {
    tinylora_basis basis;
    float *values; /* v: basis.n floats */
    float *r;      /* R: modules * basis.outputs * basis.rank floats */
    tinylora_dtype dtype;
    tinylora_tag tag;
    int last_day;       /* -1: for ever */
    int key;            /* which of the policy's keys made it; -1: a checksum */
    tinylora_mark mark; /* its sequence, and what stands for it */
} tinylora_vector;

/* Check a frame by every rule (docs/FORMAT.md, "Applying a vector") and make R of it. */
tinylora_status tinylora_read(tinylora_vector *out, const tinylora_bases *bases, const void *frame,
                              size_t size, const tinylora_policy *policy, tinylora_error *why);

/* Note that a vector is applied: raises `policy->mark`, or that of its key. Where threads share what is on disk, lock
 * it, load the marks, call this, and store them: TINYLORA_E_ROLLBACK says that a later vector came first. */
tinylora_status tinylora_accept(tinylora_policy *policy, const tinylora_vector *vector, tinylora_error *why);

void tinylora_vector_free(tinylora_vector *vector); /* frees `values` and `r`; a vector of zeros is fine */

/* A frame as a text (a link, a push message, a QR code): base64url or hexadecimal, with `tinylora:` before it or
 * without, white space anywhere. `room` is that of `out`; 3 bytes for 4 characters always fit. */
tinylora_status tinylora_text(const char *text, uint8_t *out, size_t room, size_t *size, tinylora_error *why);

/* ---- llama.cpp ---- */

#ifdef TINYLORA_LLAMA
#include <stdbool.h>

struct llama_model;
struct llama_adapter_lora;
struct llama_batch;
struct ggml_tensor;

/* An adapter of a model that was loaded from `base_path`, made in memory. Make one before the context: llama.cpp sizes its
 * graph for the adapters that there are. The model frees it. No context of the model may compute meanwhile.
 *
 * Where `r` is NULL it is (A, B), for `tinylora_eval` and all vectors of at most the basis's p and q. A swap is then a
 * pointer. Memory and time of a token grow with p, so give the basis of the largest vectors that the app uses; NULL: the
 * largest there are.
 *
 * Otherwise it is (A, B R), for one vector and no callback. Memory and time of a token grow with q, and a swap takes 20 ms
 * and more: make the new one, set it, clear the context's memory, and free the old one (llama_adapter_lora_free). */
tinylora_status tinylora_adapter(struct llama_adapter_lora **out, struct llama_model *model,
                                 const tinylora_bases *bases, const tinylora_basis *basis, const float *r,
                                 tinylora_error *why);

/* The vectors of a context's sequences. Change them between two calls of llama_decode, and clear what the sequence has in
 * the context's memory. An app with one sequence needs no `batch`. With more, all are evaluated together, whatever their
 * vectors and the numbers of their tokens: set the context's kv_unified to true and its n_ubatch to n_batch, and `batch`
 * before each call. (That is not for models with recurrent layers: llama.cpp takes their tokens in another order.) */
typedef struct {
    const tinylora_bases *bases;
    const tinylora_vector *const *vectors; /* of n_seq_max sequences; NULL: the base, bit for bit */
    const struct llama_batch *batch;       /* that llama_decode gets; NULL: all tokens are of vectors[0] */
    tinylora_error why; /* empty until an evaluation fails, though llama_decode returns 0. Then empty it, and clear the
                         * context's memory */
} tinylora_rows;

/* llama.cpp calls it inside an evaluation, where it replaces A x by R A x. It is the context's cb_eval, with a
 * `tinylora_rows` as cb_eval_user_data, and (A, B) as the only adapter, of scale 1: llama.cpp names the tensors of every
 * adapter alike. */
bool tinylora_eval(struct ggml_tensor *node, bool ask, void *rows);
#endif

#ifdef __cplusplus
}
#endif
#endif
