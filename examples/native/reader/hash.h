/* SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104) and CRC-32 (as in zlib). */
#ifndef HASH_H
#define HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
} sha256;

void sha256_begin(sha256 *h);
void sha256_add(sha256 *h, const void *data, size_t size);
void sha256_end(sha256 *h, uint8_t out[32]);

/* Both are of two parts, first || second: a message is a digest and the frame before its tag. */
void hmac_sha256(const uint8_t *key, size_t key_size, const void *first, size_t first_size, const void *second,
                 size_t second_size, uint8_t out[32]);
uint32_t crc32_of(const void *first, size_t first_size, const void *second, size_t second_size);

#endif
