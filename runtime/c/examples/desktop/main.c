// Runs a model: pith_example model.pith [input.raw]
//
// The input has the int8 values of all inputs, one after the other; without it they are zeros. Prints a line of int8 values for each output.

#include "pith.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Memory at a multiple of 64 bytes, which this program never gives back; what a model does not need is null.
static void *memory(size_t bytes) {
    char *start = bytes ? malloc(bytes + 63) : NULL;
    if (bytes && !start) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(1);
    }
    return start ? start + (64 - (uintptr_t)start % 64) % 64 : NULL;
}

static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(1);
    }
    const long end = ftell(file);
    rewind(file);
    *bytes = end < 0 ? 0 : (size_t)end;
    void *data = memory(*bytes);
    if (fread(data, 1, *bytes, file) != *bytes) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return data;
}

// An error ends the program with all that is known about it.
static void check(pith_error_t error, const char *detail) {
    if (error) {
        fprintf(stderr, "%s%s%s\n", pith_error_text(error), *detail ? ": " : "", detail);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s model.pith [input.raw]\n", argv[0]);
        return 2;
    }
    char detail[200] = "";
    size_t bytes, given = 0;
    const void *file = read_file(argv[1], &bytes);

    pith_model_t model;
    pith_error_t error = pith_model_parse(&model, file, bytes);
    pith_model_detail(&model, detail, sizeof detail);
    check(error, detail);

    const size_t arena_bytes = pith_model_arena_bytes(&model), workspace_bytes = pith_model_workspace_bytes(&model);
    pith_engine_t engine = {0};
    if (workspace_bytes == 0) { // no vectors: weights are decoded here, else the workspace does it
        const size_t decoded = pith_model_decoded_bytes(&model), scratch = pith_model_scratch_bytes(&model);
        error = pith_model_decode(&model, memory(decoded), decoded, memory(scratch), scratch);
        pith_model_detail(&model, detail, sizeof detail);
        check(error, detail);
    }
    error = pith_engine_init_workspace(&engine, &model, memory(arena_bytes), arena_bytes, memory(workspace_bytes), workspace_bytes);
    pith_engine_detail(&engine, detail, sizeof detail);
    check(error, detail);

    const int8_t *input = argc > 2 ? read_file(argv[2], &given) : NULL;
    size_t at = 0;
    for (size_t i = 0; i < pith_model_inputs(&model); i++) {
        pith_port_t port;
        check(pith_engine_input(&engine, i, &port), "");
        if (input && given - at < port.len) {
            fprintf(stderr, "%s: too short for input %zu (%.*s)\n", argv[2], i, (int)port.name_bytes, port.name);
            return 1;
        }
        if (input) memcpy(port.data, input + at, port.len);
        else memset(port.data, 0, port.len);
        at += port.len;
    }
    check(pith_engine_run(&engine), "");
    for (size_t i = 0; i < pith_model_outputs(&model); i++) {
        pith_port_t port;
        check(pith_engine_output(&engine, i, &port), "");
        for (size_t k = 0; k < port.len; k++) printf(k ? " %d" : "%d", port.data[k]);
        printf("\n");
    }
    return 0;
}
