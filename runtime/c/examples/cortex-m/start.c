// What a vendor's package brings for a real board: vectors, memory, the FPU; and printing in the emulator by semihosting.

#include <stdint.h>

int main(void);

// Of the linker script.
extern uint32_t stack_end[], data_load[], data_start[], data_end[], bss_start[], bss_end[];

static int semihosting(int operation, const void *argument) {
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void print(const char *text) { semihosting(0x04, text); }

static void stop(int code) {
    const uint32_t reason[2] = {0x20026, (uint32_t)code};
    semihosting(0x20, reason);
    for (;;) {}
}

static void fault(void) {
    print("fault\n");
    stop(1);
}

static void reset(void) {
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; // the FPU, which the hard-float ABI uses
    __asm__ volatile("dsb\n isb");
    for (uint32_t *from = data_load, *to = data_start; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    stop(main());
}

__attribute__((section(".vectors"))) const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {stack_end, {reset, fault, fault, fault, fault, fault}};
