/* Side tensors: basis.gguf, its digests, the fingerprint of a base, bases by their ids, and R (docs/FORMAT.md). */
#ifndef BASIS_H
#define BASIS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint8_t *at;
    uint64_t size;
} text; /* UTF-8 inside a file, without a terminator */

typedef struct {
    text name;
    uint32_t dimensions, type;
    uint64_t shape[4]; /* slowest first */
    const uint8_t *data;
    uint64_t size; /* bytes */
} tensor;

typedef struct {
    const uint8_t *data, *keys, *entries, *tensors;
    uint64_t size, key_count, tensor_count;
} gguf;

typedef struct {
    text name;
    tensor a, b;
    uint32_t kind, head, place, many; /* which kind; its first module; which of the kind; of the first one: how many */
} module;

typedef struct {
    gguf file;
    text architecture, factorization;
    uint32_t rank, count, kinds;
    uint32_t listed, checked, bases; /* projections that the file has; how many are checked; bases that there are */
    module *modules;                 /* `count` of them; free() it */
    uint8_t digest[32];
} factors;

enum { ENTRIES, LEARNED, RANDOM };
enum { DESCRIPTOR = 128 };

typedef struct {
    char descriptor[DESCRIPTOR];
    int kind;
    char tying; /* of a random one: t, s or f, as its name begins */
    uint32_t rank, groups, u;
    uint64_t seed, n;
    const uint8_t *p; /* of a learned one */
    uint8_t digest[32];
} basis;

/* All return NULL, or what was wrong. A file's bytes must outlive what is opened on them. */

const char *gguf_open(gguf *file, const uint8_t *data, uint64_t size);
const char *factors_open(factors *f, const uint8_t *data, uint64_t size); /* digests are computed and compared */
const char *fingerprint(const factors *f, const gguf *base, uint8_t out[32]);
int fingerprint_is_listed(const factors *f, const uint8_t print[32]);

/* Basis number i < f->bases, in the order in which ids are looked up; and the first whose id is in a frame. */
const char *basis_at(const factors *f, uint32_t i, basis *b);
const char *basis_of(const factors *f, const uint8_t *frame, size_t size, basis *b);

/* R of all modules for n values: count * rank * rank of them. Its norm is at most `max_norm`. */
const char *basis_r(const factors *f, const basis *b, const float *values, double max_norm, float *out);

/* P of a module: u * k * k values. */
void project(uint64_t seed, text name, uint32_t u, uint32_t k, float *p);
float read_f32(const uint8_t *at);

#endif
