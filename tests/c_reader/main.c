/* A program around the reader of tinylora-edge's formats, examples/native/reader, which is written from docs/FORMAT.md
 * alone. Vectors come on stdin, a text a line.
 *
 *     reader project SEED MODULE U R                    the projection of a module
 *     reader basis BASIS [BASE]                         what side tensors are, and whether the base is listed
 *     reader vectors DIGEST N KEY [NORM [STREAM DAY]]   check each vector; KEY is hexadecimal or -
 *     reader apply BASIS KEY                            the same for a basis, and R of every module
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "basis.h"
#include "hash.h"
#include "vector.h"

enum { LINE = 1 << 22 };

static void fail(const char *what) {
    fprintf(stderr, "reader: %s\n", what);
    exit(1);
}

static void *room(size_t size) {
    void *made = malloc(size ? size : 1);
    if (!made) fail("no memory");
    return made;
}

static void print_hex(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) printf("%02x", ((const uint8_t *)data)[i]);
}

static void print_floats(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, 4);
        for (int shift = 0; shift < 32; shift += 8) printf("%02x", (unsigned)(bits >> shift & 0xFF));
    }
}

static uint8_t *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    uint8_t *data;
    long end;
    if (!file || fseek(file, 0, SEEK_END) || (end = ftell(file)) < 0) fail(path);
    rewind(file);
    data = room((size_t)end);
    *size = fread(data, 1, (size_t)end, file);
    fclose(file);
    return data;
}

static size_t bytes_of(const char *hex, uint8_t *out) {
    size_t size;
    const char *error = text_decode(hex, strlen(hex), out, &size);
    if (error) fail(error);
    return size;
}

/* What the arguments trust; the key is written into `secret`. */
static trust trust_of(const char *key, uint8_t secret[4096], double max_norm, const char *stream, int today) {
    trust trusted = {NULL, 0, NULL, TAG_NONE, max_norm, stream, today};
    if (strcmp(key, "-")) {
        if (strlen(key) > 4096) fail("a key that long");
        trusted.hmac_key_size = bytes_of(key, secret);
        trusted.hmac_key = secret;
    }
    return trusted;
}

/* Check the vectors on stdin; with a basis, print R of each module too. */
static void check_lines(const uint8_t digest[32], size_t n, trust trusted, const basis *b) {
    char *line = room(LINE);
    float *values = room(n * sizeof *values);
    float *r = b ? room((size_t)b->rank * b->rank * sizeof *r) : NULL;
    while (fgets(line, LINE, stdin)) {
        size_t size, length = strcspn(line, "\n");
        uint8_t *data = room((3 * length + 3) / 4); /* as vector.h says, and no more: a sanitizer watches the end */
        vector_head head;
        const char *error = text_decode(line, length, data, &size);
        if (!error) error = vector_check(data, size, n, digest, &trusted, &head, values);
        free(data);
        if (error) {
            printf("refused %s\n", error);
            continue;
        }
        printf("ok version %d dtype %d tag %d sequence %d until %d values ", head.version, head.dtype, head.tag,
               head.sequence, head.until);
        print_floats(values, n);
        putchar('\n');
        for (uint32_t i = 0; b && i < b->count; i++) {
            error = basis_r(b, i, values, r);
            if (error) fail(error);
            print_floats(r, (size_t)b->rank * b->rank);
            putchar('\n');
        }
    }
    free(line);
    free(values);
    free(r);
}

static void show_basis(const basis *b, const char *base) {
    printf("architecture %.*s\n", (int)b->architecture.size, (const char *)b->architecture.at);
    printf("modules %u rank %u u %u groups %u seed %llu\n", b->count, b->rank, b->u, b->groups,
           (unsigned long long)b->seed);
    printf("digest ");
    print_hex(b->digest, 32);
    putchar('\n');
    for (uint32_t i = 0; i < b->count; i++)
        if (b->modules[i].p.data) {
            printf("p ");
            print_hex(b->modules[i].p.data, b->modules[i].p.size);
            putchar('\n');
        }
    if (base) {
        size_t size;
        uint8_t *data = read_file(base, &size), print[32];
        gguf file;
        const char *error = gguf_open(&file, data, size);
        if (!error) error = fingerprint(b, &file, print);
        if (error) fail(error);
        printf("fingerprint ");
        print_hex(print, 32);
        printf(" %s\n", fingerprint_is_listed(b, print) ? "listed" : "unknown");
        free(data);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (argc == 6 && !strcmp(what, "project")) {
        text name = {(const uint8_t *)argv[3], strlen(argv[3])};
        uint32_t u = (uint32_t)atoi(argv[4]), r = (uint32_t)atoi(argv[5]);
        float *p = room((size_t)u * r * r * sizeof *p);
        project(strtoull(argv[2], NULL, 10), name, u, r, p);
        print_floats(p, (size_t)u * r * r);
        putchar('\n');
        free(p);
    } else if ((argc == 5 || argc == 6 || argc == 8) && !strcmp(what, "vectors")) {
        uint8_t digest[64], secret[4096];
        trust trusted = trust_of(argv[4], secret, argc > 5 ? atof(argv[5]) : 0, argc == 8 ? argv[6] : NULL,
                                 argc == 8 ? atoi(argv[7]) : 0);
        if (strlen(argv[2]) != 64 || bytes_of(argv[2], digest) != 32) fail("DIGEST is 64 hexadecimal digits");
        check_lines(digest, strtoul(argv[3], NULL, 10), trusted, NULL);
    } else if ((argc >= 3 && argc <= 4 && !strcmp(what, "basis")) || (argc == 4 && !strcmp(what, "apply"))) {
        size_t size;
        uint8_t *data = read_file(argv[2], &size), secret[4096];
        basis b;
        const char *error = basis_open(&b, data, size);
        if (error) {
            free(b.modules);
            free(data);
            fail(error);
        }
        if (!strcmp(what, "basis"))
            show_basis(&b, argc == 4 ? argv[3] : NULL);
        else
            check_lines(b.digest, (size_t)b.groups * b.u, trust_of(argv[3], secret, 0, NULL, 0), &b);
        free(b.modules);
        free(data);
    } else {
        fail("unknown command: see main.c");
    }
    return 0;
}
