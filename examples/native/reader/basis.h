/* Side tensors: basis.gguf, its digest, the fingerprint of a base, projections and R (docs/FORMAT.md). */
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
    uint32_t group;
    tensor a, b, p; /* p.data is NULL where projections are regenerated */
} module;

typedef struct {
    gguf file;
    text architecture, projection, factorization;
    uint32_t rank, u, groups, count;
    uint64_t seed;
    module *modules; /* `count` of them; free() it */
    uint8_t digest[32];
} basis;

/* All return NULL, or what was wrong. A file's bytes must outlive what is opened on them. */

const char *gguf_open(gguf *file, const uint8_t *data, uint64_t size);
const char *basis_open(basis *b, const uint8_t *data, uint64_t size); /* the digest is computed and compared */
const char *fingerprint(const basis *b, const gguf *base, uint8_t out[32]);
int fingerprint_is_listed(const basis *b, const uint8_t print[32]);

/* P of a module, u * r * r values, and R for a vector, r * r values. */
void project(uint64_t seed, text name, uint32_t u, uint32_t r, float *p);
void sum_of_projections(const float *p, const float *v, uint32_t u, uint32_t r, float *out);
float read_f32(const uint8_t *at);
const char *basis_r(const basis *b, uint32_t number, const float *values, float *out);

#endif
