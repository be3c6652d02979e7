// A model in flash, its arena in RAM: runs once and prints the outputs.

#include "pith.h"

// In start.c.
void print(const char *text);

// In model.S.
extern const uint8_t model_start[], model_end[];

static pith_model_t model;
static pith_engine_t engine;
static uint8_t arena[64] __attribute__((aligned(16)));

static void print_number(int32_t number) {
    char text[12];
    char *digit = text + sizeof text - 1;
    uint32_t rest = number < 0 ? 0u - (uint32_t)number : (uint32_t)number;
    *digit = 0;
    do {
        *--digit = (char)('0' + rest % 10);
    } while (rest /= 10);
    if (number < 0) *--digit = '-';
    print(text + (digit - text));
}

static pith_error_t run(void) {
    pith_error_t error = pith_model_parse(&model, model_start, (size_t)(model_end - model_start));
    if (!error) error = pith_engine_init(&engine, &model, arena, sizeof arena);
    pith_port_t port;
    for (size_t i = 0; !error && i < pith_model_inputs(&model); i++) {
        error = pith_engine_input(&engine, i, &port);
        for (size_t at = 0; !error && at < port.len; at++) port.data[at] = 3;
    }
    if (!error) error = pith_engine_run(&engine);
    for (size_t i = 0; !error && i < pith_model_outputs(&model); i++) {
        error = pith_engine_output(&engine, i, &port);
        for (size_t at = 0; !error && at < port.len; at++) {
            print_number(port.data[at]);
            print(at + 1 < port.len ? " " : "\n");
        }
    }
    return error;
}

int main(void) {
    const pith_error_t error = run();
    if (error) {
        print(pith_error_text(error));
        print("\n");
    }
    return error;
}
