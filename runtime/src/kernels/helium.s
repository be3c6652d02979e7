@ Helium kernels, see helium.rs. Soft-float calls: arguments in r0-r3 and on the stack; q4-q7 (d8-d15) belong to the caller.

.cpu cortex-m55
.syntax unified
.thumb

.macro function name
    .section .text.\name, "ax", %progbits
    .global \name
    .type \name, %function
    .thumb_func
    .p2align 2
\name:
.endm

@ ---- Windows times a matrix -------------------------------------------------------------------------------------------------------
@
@ VMLADAVA adds sixteen products to a sum in an even core register. There are eight of those, so odd registers hold pointers and
@ nothing counts. Sums of four rows: r0 r2 r4 r6 of the first window (or block), r8 r10 r12 lr of the second.
@
@ The frame is a copy of `Call`:
@    0 end of the weights  4 zero point     8 window 0           12 window 1; x1: bytes of a block
@   16 entry              20 weights       24 bytes of a window  28 output 0    32 output 1
@   36 step of windows    40 windows       44 step of outputs    48 lowest      52 highest
@   56 rows               60 rows left

.macro enter label, bytes, frame=68
    push {r4-r11, lr}
    vpush {d8-d15}
    sub sp, #\frame
    vldrw.u32 q0, [r0]
    vldrw.u32 q1, [r0, #16]
    vldrw.u32 q2, [r0, #32]
    vldrw.u32 q3, [r0, #48]
    vstrw.32 q0, [sp]
    vstrw.32 q1, [sp, #16]
    vstrw.32 q2, [sp, #32]
    vstrw.32 q3, [sp, #48]
    @ The unrolled loop is entered behind the steps that its first round skips.
    ldr r1, [sp, #16]
    movs r2, #\bytes
    muls r1, r2, r1
    adr.w r2, \label
    add r1, r2
    orr r1, r1, #1
    str r1, [sp, #16]
.endm

.macro leave frame=68
    add sp, #\frame
    vpop {d8-d15}
    pop {r4-r11, pc}
.endm

@ A shift below 33 is made up for by doublings (to q2) of the sum before.
.macro doublings shift
    vmov.i8 q2, #0xFF
    vmov.i32 q3, #0
    vsub.i32 q3, \shift, q2
    vmin.s32 \shift, \shift, q2
    vmov.i32 q2, #0
    vmax.s32 q2, q3, q2
.endm

@ Sums to q0 and q1.
.macro collect
    vmov d0, r0, r2
    vmov d1, r4, r6
    vmov d2, r8, r10
    vmov d3, r12, lr
.endm

@ Sums to outputs: high word of a product, rounding shift, zero point, saturation. q0 goes to r7, q1 (whose multipliers and shifts
@ are named) to r5. `wide` has doublings, bounds and a last block of less than four rows.
.macro stage wide, multiplier, shift, step
.if \wide
    doublings q7
    vqshl.s32 q0, q0, q2
.ifc \shift, q7
.else
    doublings \shift
.endif
    vqshl.s32 q1, q1, q2
.endif
    vmulh.s32 q0, q0, q6
    vmulh.s32 q1, q1, \multiplier
    vrshl.s32 q0, q0, q7
    vrshl.s32 q1, q1, \shift
    ldrd r0, r2, [sp]
    vqmovnb.s32 q0, q0
    vqmovnt.s32 q0, q1
    vqadd.s16 q0, q0, r2
    vqmovnb.s16 q0, q0
.if \wide
    ldrd r2, r4, [sp, #48]
    vdup.8 q2, r2
    vdup.8 q3, r4
    vmax.s8 q0, q0, q2
    vmin.s8 q0, q0, q3
    ldr r2, [sp, #60]
    vctp.32 r2
    vpst
    vstrbt.32 q0, [r7], #\step
    vshr.u32 q0, q0, #16
.ifc \shift, q7
    subs r2, #4
.else
    subs r2, #4
    it lo
    movlo r2, #0
    vctp.32 r2
    subs r2, #4
.endif
    str r2, [sp, #60]
    vpst
    vstrbt.32 q0, [r5], #\step
.else
    vstrb.32 q0, [r7], #\step
    vshr.u32 q0, q0, #16
    vstrb.32 q0, [r5], #\step
.endif
.endm

@ Moves the frame to the next two windows; zero if there are none.
.macro next_windows
    ldrd r0, r1, [sp, #8]
    ldrd r2, r3, [sp, #36]
    ldrd r4, r5, [sp, #28]
    ldr r6, [sp, #44]
    add r0, r2
    add r1, r2
    add r4, r6
    add r5, r6
    subs r3, #2
    strd r0, r1, [sp, #8]
    strd r4, r5, [sp, #28]
    str r3, [sp, #40]
.endm

.macro step_x2
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q2, [r1], #16
    vldrb.u8 q1, [r11], #16
    vmladava.s8 r0, q0, q2
    vldrw.u32 q3, [r1], #16
    vmladava.s8 r8, q1, q2
    vldrw.u32 q4, [r1], #16
    vmladava.s8 r2, q0, q3
    vmladava.s8 r10, q1, q3
    vldrw.u32 q5, [r1], #16
    vmladava.s8 r4, q0, q4
    vmladava.s8 r12, q1, q4
    vmladava.s8 r6, q0, q5
    vmladava.s8 lr, q1, q5
.endm

@ Four rows times two windows: r1 weights, r9 and r11 windows, r3 end of the first, r7 and r5 outputs.
.macro windows_x2 name, wide
function \name
    enter 3f, 56
1:
    ldr r1, [sp, #20]
    ldr r9, [sp, #8]
    ldr r3, [sp, #24]
    ldrd r7, r5, [sp, #28]
    add r3, r9
.if \wide
    ldr r0, [sp, #56]
    str r0, [sp, #60]
.endif
2:
    ldm r1, {r8, r10, r12, lr}
    ldm r1!, {r0, r2, r4, r6}
    vldrw.u32 q6, [r1], #16
    vldrb.s32 q7, [r1], #16
    ldrd r9, r11, [sp, #8]
    ldr pc, [sp, #16]
    .p2align 2
3:
    step_x2
    step_x2
    step_x2
    step_x2
    cmp r9, r3
    bne 3b
    collect
    stage \wide, q6, q7, 4
    cmp r1, r0
    bne 2b
    next_windows
    bne 1b
    leave
.endm

windows_x2 pith_helium_windows_x2, 0
windows_x2 pith_helium_windows_x2_wide, 1

.macro step_x1
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q1, [r1], #16
    vldrw.u32 q2, [r3], #16
    vmladava.s8 r0, q0, q1
    vldrw.u32 q3, [r1], #16
    vmladava.s8 r8, q0, q2
    vldrw.u32 q1, [r3], #16
    vmladava.s8 r2, q0, q3
    vldrw.u32 q2, [r1], #16
    vmladava.s8 r10, q0, q1
    vldrw.u32 q3, [r3], #16
    vmladava.s8 r4, q0, q2
    vldrw.u32 q1, [r1], #16
    vmladava.s8 r12, q0, q3
    vldrw.u32 q2, [r3], #16
    vmladava.s8 r6, q0, q1
    vmladava.s8 lr, q0, q2
.endm

@ What stays for one window.
.macro first_blocks
    ldr r3, [sp, #20]
    ldr r7, [sp, #28]
    ldr r9, [sp, #8]
    ldr r11, [sp, #24]
    ldr r0, [sp]
    add r11, r9
.endm

@ The next two blocks; a last single one twice.
.macro next_blocks
    mov r1, r3
    ldr r2, [sp, #12]
    add r5, r7, #4
    add r3, r2
    cmp r3, r0
    bne 2f
    mov r3, r1
    mov r5, r7
2:
.endm

@ Eight rows times one window: r1 and r3 two blocks, r9 the window, r11 its end, r7 and r5 outputs. A last single block is taken twice.
.macro windows_x1 name, wide
function \name
    enter 3f, 68
    first_blocks
1:
    next_blocks
    ldm r1!, {r0, r2, r4, r6}
    ldm r3!, {r8, r10, r12, lr}
    vldrw.u32 q6, [r1], #16
    vldrb.s32 q7, [r1], #16
    vldrw.u32 q4, [r3], #16
    vldrb.s32 q5, [r3], #16
    ldr r9, [sp, #8]
    ldr pc, [sp, #16]
    .p2align 2
3:
    step_x1
    step_x1
    step_x1
    step_x1
    cmp r9, r11
    bne 3b
    collect
    stage \wide, q4, q5, 8
    cmp r3, r0
    bne 1b
    leave
.endm

windows_x1 pith_helium_windows_x1, 0
windows_x1 pith_helium_windows_x1_wide, 1

@ ---- Weights of 4 and 2 bits -------------------------------------------------------------------------------------------------------
@
@ A byte holds one k of two rows or of four, the first in the lowest bits, in two's complement. Moved to the upper bits, with zeros below, a
@ weight is 16 or 64 times as large, and so are products and sums, which hold 2^15 of them. Biases come on top when sums are small again.
@
@ With zero points, a row's sum has too much what its zero point times the window's activations gives; `wide` takes it off its bias.
@
@ The frame, behind that of `Call`:
@   64, 68 sums of both windows, negative   72, 76 blocks of x1   80, 96 biases of both windows of x2, `wide`   112 zero points

.macro enter_narrow label, bytes, bits
    enter \label, \bytes, 116
    ldr r0, [r0, #64]
    str r0, [sp, #112]
    mask \bits
.endm

@ The upper bits of a byte.
.macro mask bits
.if \bits == 4
    movs r2, #0xF0
.else
    movs r2, #0xC0
.endif
    vdup.8 q5, r2
.endm

@ The sum of a window's activations, from r4 on, negative, to `place`.
.macro sum_of_window place
    movs r0, #0
    ldr r2, [sp, #24]
    lsrs r2, r2, #4
    wls lr, r2, 8f
7:
    vldrb.u8 q0, [r4], #16
    vaddva.s8 r0, q0
    le lr, 7b
8:
    negs r0, r0
    str r0, [sp, #\place]
.endm

.macro no_sums
    movs r0, #0
    mov r2, r0
    mov r4, r0
    mov r6, r0
    mov r8, r0
    mov r10, r0
    mov r12, r0
    mov lr, r0
.endm

.macro step_x2_4
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q2, [r1], #16
    vldrb.u8 q1, [r11], #16
    vshl.i8 q3, q2, #4
    vmladava.s8 r0, q0, q3
    vand q2, q2, q5
    vmladava.s8 r8, q1, q3
    vldrw.u32 q3, [r1], #16
    vmladava.s8 r2, q0, q2
    vmladava.s8 r10, q1, q2
    vshl.i8 q2, q3, #4
    vmladava.s8 r4, q0, q2
    vand q3, q3, q5
    vmladava.s8 r12, q1, q2
    vmladava.s8 r6, q0, q3
    vmladava.s8 lr, q1, q3
.endm

.macro step_x2_2
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q2, [r1], #16
    vldrb.u8 q1, [r11], #16
    vshl.i8 q3, q2, #6
    vmladava.s8 r0, q0, q3
    vmladava.s8 r8, q1, q3
    vshl.i8 q3, q2, #4
    vand q3, q3, q5
    vmladava.s8 r2, q0, q3
    vmladava.s8 r10, q1, q3
    vshl.i8 q3, q2, #2
    vand q3, q3, q5
    vmladava.s8 r4, q0, q3
    vmladava.s8 r12, q1, q3
    vand q2, q2, q5
    vmladava.s8 r6, q0, q2
    vmladava.s8 lr, q1, q2
.endm

@ As windows_x2. q4 biases, q5 the mask.
.macro windows_x2_narrow name, wide, bits, bytes
function \name
    enter_narrow 3f, \bytes, \bits
1:
.if \wide
    ldr r0, [sp, #56]
    str r0, [sp, #60]
    ldr r1, [sp, #112]
    cmp r1, #0
    beq 5f
    ldr r4, [sp, #8]
    sum_of_window 64
    ldr r4, [sp, #12]
    sum_of_window 68
5:
.endif
    ldr r1, [sp, #20]
    ldr r9, [sp, #8]
    ldr r3, [sp, #24]
    ldrd r7, r5, [sp, #28]
    add r3, r9
2:
    vldrw.u32 q4, [r1], #16
    vldrw.u32 q6, [r1], #16
    vldrb.s32 q7, [r1], #16
.if \wide
    vmov q0, q4
    ldr r0, [sp, #112]
    cmp r0, #0
    beq 6f
    vldrb.s32 q1, [r1, #-12]
    ldrd r0, r2, [sp, #64]
    vmla.s32 q0, q1, r0
    vmla.s32 q4, q1, r2
6:
    vstrw.32 q0, [sp, #80]
    vstrw.32 q4, [sp, #96]
.endif
    no_sums
    ldrd r9, r11, [sp, #8]
    ldr pc, [sp, #16]
    .p2align 2
3:
    step_x2_\bits
    step_x2_\bits
    step_x2_\bits
    step_x2_\bits
    cmp r9, r3
    bne 3b
    collect
    vshr.s32 q0, q0, #8 - \bits
    vshr.s32 q1, q1, #8 - \bits
.if \wide
    vldrw.u32 q2, [sp, #80]
    vldrw.u32 q4, [sp, #96]
    vadd.i32 q0, q0, q2
.else
    vadd.i32 q0, q0, q4
.endif
    vadd.i32 q1, q1, q4
    stage \wide, q6, q7, 4
    cmp r1, r0
    bne 2b
    next_windows
    bne 1b
    leave 116
.endm

windows_x2_narrow pith_helium_windows_4_x2, 0, 4, 64
windows_x2_narrow pith_helium_windows_4_x2_wide, 1, 4, 64
windows_x2_narrow pith_helium_windows_2_x2, 0, 2, 68
windows_x2_narrow pith_helium_windows_2_x2_wide, 1, 2, 68

.macro step_x1_4
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q1, [r1], #16
    vldrw.u32 q2, [r3], #16
    vshl.i8 q3, q1, #4
    vmladava.s8 r0, q0, q3
    vand q1, q1, q5
    vmladava.s8 r2, q0, q1
    vshl.i8 q3, q2, #4
    vmladava.s8 r8, q0, q3
    vand q2, q2, q5
    vmladava.s8 r10, q0, q2
    vldrw.u32 q1, [r1], #16
    vldrw.u32 q2, [r3], #16
    vshl.i8 q3, q1, #4
    vmladava.s8 r4, q0, q3
    vand q1, q1, q5
    vmladava.s8 r6, q0, q1
    vshl.i8 q3, q2, #4
    vmladava.s8 r12, q0, q3
    vand q2, q2, q5
    vmladava.s8 lr, q0, q2
.endm

.macro step_x1_2
    vldrb.u8 q0, [r9], #16
    vldrw.u32 q1, [r1], #16
    vldrw.u32 q2, [r3], #16
    vshl.i8 q3, q1, #6
    vmladava.s8 r0, q0, q3
    vshl.i8 q3, q1, #4
    vand q3, q3, q5
    vmladava.s8 r2, q0, q3
    vshl.i8 q3, q1, #2
    vand q3, q3, q5
    vmladava.s8 r4, q0, q3
    vand q1, q1, q5
    vmladava.s8 r6, q0, q1
    vshl.i8 q3, q2, #6
    vmladava.s8 r8, q0, q3
    vshl.i8 q3, q2, #4
    vand q3, q3, q5
    vmladava.s8 r10, q0, q3
    vshl.i8 q3, q2, #2
    vand q3, q3, q5
    vmladava.s8 r12, q0, q3
    vand q2, q2, q5
    vmladava.s8 lr, q0, q2
.endm

@ As windows_x1. Output stages are loaded behind the sums.
.macro windows_x1_narrow name, wide, bits, bytes
function \name
    enter_narrow 3f, \bytes, \bits
.if \wide
    ldr r1, [sp, #112]
    cmp r1, #0
    beq 5f
    ldr r4, [sp, #8]
    sum_of_window 64
5:
.endif
    first_blocks
1:
    next_blocks
    strd r1, r3, [sp, #72]
    mask \bits
    adds r1, #48
    adds r3, #48
    no_sums
    ldr r9, [sp, #8]
    ldr pc, [sp, #16]
    .p2align 2
3:
    step_x1_\bits
    step_x1_\bits
    step_x1_\bits
    step_x1_\bits
    cmp r9, r11
    bne 3b
    collect
    vshr.s32 q0, q0, #8 - \bits
    vshr.s32 q1, q1, #8 - \bits
    ldrd r0, r2, [sp, #72]
    vldrw.u32 q2, [r0]
    vldrw.u32 q3, [r2]
.if \wide
    ldr r4, [sp, #112]
    cmp r4, #0
    beq 6f
    ldr r4, [sp, #64]
    vldrb.s32 q4, [r0, #36]
    vldrb.s32 q5, [r2, #36]
    vmla.s32 q2, q4, r4
    vmla.s32 q3, q5, r4
6:
.endif
    vadd.i32 q0, q0, q2
    vadd.i32 q1, q1, q3
    vldrw.u32 q6, [r0, #16]
    vldrb.s32 q7, [r0, #32]
    vldrw.u32 q4, [r2, #16]
    vldrb.s32 q5, [r2, #32]
    stage \wide, q4, q5, 8
    cmp r3, r0
    bne 1b
    leave 116
.endm

windows_x1_narrow pith_helium_windows_4_x1, 0, 4, 84
windows_x1_narrow pith_helium_windows_4_x1_wide, 1, 4, 84
windows_x1_narrow pith_helium_windows_2_x1, 0, 2, 92
windows_x1_narrow pith_helium_windows_2_x1_wide, 1, 2, 92

@ ---- A look at output stages -----------------------------------------------------------------------------------------------------
@
@ r0 a word, r1 distance to the next, r2 how many: all of them joined, which begins with `first` in every byte.
.macro joined name, join, scalar, first
function \name
    push {r7, lr}
    movs r12, #0
    vidup.u32 q0, r12, #1
    vmul.i32 q0, q0, r1
    lsls r1, r1, #2
    vmov.i8 q1, #\first
    wlstp.32 lr, r2, 2f
1:
    vldrw.u32 q2, [r0, q0]
    add r0, r1
    \join q1, q1, q2
    letp lr, 1b
2:
    vmov r0, r1, d2
    vmov r2, r3, d3
    \scalar r0, r1
    \scalar r2, r3
    \scalar r0, r2
    pop {r7, pc}
.endm

joined pith_helium_and_words, vand, ands, 0xFF
joined pith_helium_or_words, vorr, orrs, 0

@ ---- Copies -----------------------------------------------------------------------------------------------------------------------

@ r0 to, r1 from, r2 bytes; `to` may overlap `from` from below.
function pith_helium_copy
    push {r7, lr}
    wlstp.8 lr, r2, 2f
1:
    vldrb.u8 q0, [r1], #16
    vstrb.8 q0, [r0], #16
    letp lr, 1b
2:
    pop {r7, pc}

@ r0 to, r1 from, r2 bytes of a run, r3 distance in `to`, [sp] runs.
function pith_helium_spread
    push {r4, r5, r6, lr}
    ldr r4, [sp, #16]
1:
    mov r5, r0
    mov r6, r1
    wlstp.8 lr, r2, 3f
2:
    vldrb.u8 q0, [r6], #16
    vstrb.8 q0, [r5], #16
    letp lr, 2b
3:
    add r1, r2
    add r0, r3
    subs r4, #1
    bne 1b
    pop {r4, r5, r6, pc}

@ ---- Depthwise ------------------------------------------------------------------------------------------------------------------------
@
@ Four channels at a time, each in a plane of its own: a word for every column, its bytes four rows of the input (row `r` in byte `r & 3`).
@ Sixteen bytes are a window of up to 4x4, and one VMLADAVA is one output. Weights are turned with the rows: four phases of each filter.
@
@ The frame: 0 bias (4)   16 distances of planes (4)   then a copy of `Depthwise`:
@   32 input      36 bytes of a row   40 in_w    44 in_h      48 pad_top     52 stride_h    56 output    60 out_w
@   64 out_h      68 channels         72 weights 76 kernel_h  80 kernel_w    84 filters     88 planes    92 bytes of a plane
@   96 first      100 -in zero point  104 zero point          108 in zero point 112 bias    116 multiplier 120 shift
@  124 count      128 lowest          132 highest             136 top        140 filled
@ and for `wide`: 144 multiplier (4)  160 lowest (16)        176 highest (16)

.macro depthwise name, wide, stride
function \name
    push {r4-r11, lr}
    vpush {d8-d15}
    sub sp, #196
    vldrw.u32 q0, [r0]
    vldrw.u32 q1, [r0, #16]
    vldrw.u32 q2, [r0, #32]
    vldrw.u32 q3, [r0, #48]
    vldrw.u32 q4, [r0, #64]
    vldrw.u32 q5, [r0, #80]
    vldrw.u32 q6, [r0, #96]
    vstrw.32 q0, [sp, #32]
    vstrw.32 q1, [sp, #48]
    vstrw.32 q2, [sp, #64]
    vstrw.32 q3, [sp, #80]
    vstrw.32 q4, [sp, #96]
    vstrw.32 q5, [sp, #112]
    vstrw.32 q6, [sp, #128]
    @ Lanes of absent channels read zeros and write nothing.
    ldr r0, [sp, #124]
    vctp.32 r0

    @ Filters in four phases (64 bytes a channel), and the bias less what the zero point adds.
    movs r0, #0
    vidup.u32 q7, r0, #1
    ldr r1, [sp, #92]
    vmul.i32 q0, q7, r1
    vstrw.32 q0, [sp, #16]
    vshl.i32 q7, q7, #6
    vmov.i32 q2, #0
    ldr r12, [sp, #84]
    mov r0, r12
    movs r1, #16
    dls lr, r1
1:
    vstrw.32 q2, [r0], #16
    le lr, 1b
    ldr r0, [sp, #112]
    vpst
    vldrwt.u32 q3, [r0]
    ldr r1, [sp, #72]
    ldr r6, [sp, #68]
    ldr r7, [sp, #100]
    movs r3, #4
    movs r5, #0
2:
    and r8, r5, #3
    add r9, r5, #1
    and r9, r9, #3
    add r10, r5, #2
    and r10, r10, #3
    add r11, r5, #3
    and r11, r11, #3
    add r8, r12
    add r9, r12
    add r10, r12
    add r11, r12
    ldr r0, [sp, #80]
    vmov q4, q7
    dls lr, r0
3:
    vpst
    vldrbt.s32 q5, [r1]
    add r1, r6
    vmla.s32 q3, q5, r7
    vstrb.32 q5, [r8, q4]
    vadd.i32 q6, q4, r3
    add.w r0, r9, #16
    vstrb.32 q5, [r0, q4]
    add.w r0, r10, #32
    vstrb.32 q5, [r0, q4]
    add.w r0, r11, #48
    vstrb.32 q5, [r0, q4]
    vmov q4, q6
    le lr, 3b
    adds r5, #1
    ldr r0, [sp, #76]
    cmp r5, r0
    bne 2b
    vstrw.32 q3, [sp]

    @ Planes hold the zero point wherever no row is spread.
    ldr r0, [sp, #88]
    ldr r1, [sp, #92]
    ldr r2, [sp, #108]
    lsls r1, r1, #2
    vdup.8 q2, r2
    wlstp.8 lr, r1, 5f
4:
    vstrb.8 q2, [r0], #16
    letp lr, 4b
5:
    ldr r0, [sp, #116]
    ldr r1, [sp, #120]
    vmov.i32 q7, #32
    vpst
    vldrwt.u32 q5, [r0]
    vpst
    vldrbt.u32 q6, [r1]
    vsub.i32 q6, q7, q6
.if \wide
    doublings q6
    vmov q7, q2
    vstrw.32 q5, [sp, #144]
    ldrd r0, r1, [sp, #128]
    vdup.8 q2, r0
    vdup.8 q3, r1
    vstrw.32 q2, [sp, #160]
    vstrw.32 q3, [sp, #176]
.endif
    ldr r10, [sp, #104]
    ldr r12, [sp, #68]
    movs r0, #0
    movs r1, #0

    @ A row of the output: r0 rows that are spread already, r1 the first one that is read.
6:
    ldr r2, [sp, #76]
    str r1, [sp, #136]
    add r2, r1
    cmp r0, r1
    it lo
    movlo r0, r1
    vldrw.u32 q0, [sp, #16]
    b 11f
7:
    ldr r3, [sp, #96]
    ldr r4, [sp, #48]
    ldrd r5, r6, [sp, #40]
    and r7, r0, #3
    add r3, r7
    subs r4, r0, r4
    dls lr, r5
    cmp r4, r6
    bhs 9f
    ldrd r5, r6, [sp, #32]
    mla r5, r4, r6, r5
8:
.if \wide
    vpst
    vldrbt.u32 q4, [r5]
.else
    vldrb.u32 q4, [r5]
.endif
    add r5, r12
    vstrb.32 q4, [r3, q0]
    adds r3, #4
    le lr, 8b
    b 10f
9:
    ldr r4, [sp, #108]
    vdup.8 q4, r4
12:
    vstrb.32 q4, [r3, q0]
    adds r3, #4
    le lr, 12b
10:
    adds r0, #1
11:
    cmp r0, r2
    blo 7b
    str r0, [sp, #140]
    and r1, r1, #3
    ldrd r0, r3, [sp, #84]
    add r0, r0, r1, lsl #4
    ldr r11, [sp, #92]
    vldrw.u32 q0, [r0]
    vldrw.u32 q1, [r0, #64]
    vldrw.u32 q2, [r0, #128]
    vldrw.u32 q3, [r0, #192]
    add r5, r3, r11
    add r7, r5, r11
    add r9, r7, r11
    ldrd r1, r0, [sp, #56]
    dls lr, r0
13:
    ldm sp, {r0, r2, r4, r6}
    vldrw.u32 q4, [r3], #\stride
    vmladava.s8 r0, q4, q0
    vldrw.u32 q4, [r5], #\stride
    vmladava.s8 r2, q4, q1
    vldrw.u32 q4, [r7], #\stride
    vmladava.s8 r4, q4, q2
    vldrw.u32 q4, [r9], #\stride
    vmladava.s8 r6, q4, q3
    vmov d8, r0, r2
    vmov d9, r4, r6
.if \wide
    vldrw.u32 q5, [sp, #144]
    vqshl.s32 q4, q4, q7
.endif
    vmulh.s32 q4, q4, q5
    vrshl.s32 q4, q4, q6
    vqmovnb.s32 q4, q4
    vqadd.s16 q4, q4, r10
    vqmovnb.s16 q4, q4
.if \wide
    vldrw.u32 q5, [sp, #160]
    vmax.s8 q4, q4, q5
    vldrw.u32 q5, [sp, #176]
    vmin.s8 q4, q4, q5
    vpst
    vstrbt.32 q4, [r1]
.else
    vstrb.32 q4, [r1]
.endif
    add r1, r12
    le lr, 13b
    ldr r0, [sp, #140]
    str r1, [sp, #56]
    ldr r1, [sp, #136]
    ldr r2, [sp, #52]
    ldr r3, [sp, #64]
    add r1, r2
    subs r3, #1
    str r3, [sp, #64]
    bne.w 6b
    add sp, #196
    vpop {d8-d15}
    pop {r4-r11, pc}
.endm

depthwise pith_helium_depthwise_1, 0, 4
depthwise pith_helium_depthwise_1_wide, 1, 4
depthwise pith_helium_depthwise_2, 0, 8
depthwise pith_helium_depthwise_2_wide, 1, 8

@ Windows of any size: four channels in lanes, rows of the input from a ring. The frame: 0 lowest (16)   16 highest (16)   then `Row`:
@   32 first row of a window  36 bytes of a row  40 end of the ring  44 its bytes   48 kernel_h  52 kernel_w   56 step  60 channels
@   64 weights  68 bias  72 multiplier  76 shift  80 zero point  84 lowest  88 highest  92 output  96 width  100 channels left

function pith_helium_depthwise_row
    push {r4-r11, lr}
    vpush {d8-d15}
    sub sp, #116
    vldrw.u32 q0, [r0]
    vldrw.u32 q1, [r0, #16]
    vldrw.u32 q2, [r0, #32]
    vldrw.u32 q3, [r0, #48]
    vldrw.u32 q4, [r0, #64]
    vstrw.32 q0, [sp, #32]
    vstrw.32 q1, [sp, #48]
    vstrw.32 q2, [sp, #64]
    vstrw.32 q3, [sp, #80]
    vstrw.32 q4, [sp, #96]
    ldrd r0, r1, [sp, #84]
    vdup.8 q0, r0
    vdup.8 q1, r1
    vstrw.32 q0, [sp]
    vstrw.32 q1, [sp, #16]
    ldr r10, [sp, #80]
    ldr r12, [sp, #60]
1:
    ldr r0, [sp, #100]
    vctp.32 r0
    ldrd r1, r2, [sp, #68]
    ldr r3, [sp, #76]
    vpstt
    vldrwt.u32 q1, [r1], #16
    vldrwt.u32 q4, [r2], #16
    vpst
    vldrbt.u32 q7, [r3], #4
    strd r1, r2, [sp, #68]
    str r3, [sp, #76]
    vmov.i32 q3, #32
    vsub.i32 q7, q3, q7
    doublings q7
    ldrd r1, r11, [sp, #92]
    ldr r9, [sp, #32]
2:
    vmov q0, q1
    ldr r3, [sp, #64]
    ldr r5, [sp, #48]
    mov r4, r9
3:
    ldr r0, [sp, #52]
    mov r6, r4
    dls lr, r0
4:
    vpstt
    vldrbt.s32 q5, [r6]
    vldrbt.s32 q6, [r3]
    add r6, r12
    add r3, r12
    vmul.i32 q5, q5, q6
    vadd.i32 q0, q0, q5
    le lr, 4b
    ldrd r0, r7, [sp, #36]
    add r4, r0
    cmp r4, r7
    blo 5f
    ldr r0, [sp, #44]
    subs r4, r4, r0
5:
    subs r5, #1
    bne 3b
    vldrw.u32 q5, [sp]
    vldrw.u32 q6, [sp, #16]
    vqshl.s32 q0, q0, q2
    vmulh.s32 q0, q0, q4
    vrshl.s32 q0, q0, q7
    vqmovnb.s32 q0, q0
    vqadd.s16 q0, q0, r10
    vqmovnb.s16 q0, q0
    vmax.s8 q0, q0, q5
    vmin.s8 q0, q0, q6
    vpst
    vstrbt.32 q0, [r1]
    ldr r0, [sp, #56]
    add r1, r12
    add r9, r0
    subs r11, #1
    bne 2b
    ldr r0, [sp, #32]
    ldr r1, [sp, #64]
    ldr r2, [sp, #92]
    ldr r3, [sp, #100]
    adds r0, #4
    adds r1, #4
    adds r2, #4
    str r0, [sp, #32]
    str r1, [sp, #64]
    str r2, [sp, #92]
    subs r3, #4
    str r3, [sp, #100]
    bhi 1b
    add sp, #116
    vpop {d8-d15}
    pop {r4-r11, pc}

@ ---- Element by element ---------------------------------------------------------------------------------------------------------------
@
@ r0 is `Add`: 0 lhs  4 rhs  8 output  12 elements  16 lhs multiplier  20 rhs multiplier  24 constant  28 -shift  32 zero point
@ 36 lowest  40 highest.


@ Eight elements; `t` predicates what touches memory, and only that: lanes of 32 bits hold halves of two elements' predicates.
.macro add_eight wide, t
.ifnb \t
    vpstt
.endif
    vldrb\t\().s16 q0, [r0], #8
    vldrb\t\().s16 q2, [r1], #8
    vmovlt.s16 q1, q0
    vmovlb.s16 q0, q0
    vmovlt.s16 q3, q2
    vmovlb.s16 q2, q2
    vmlas.s32 q1, q4, r6
    vmlas.s32 q0, q4, r6
    vmla.s32 q1, q3, r5
    vmla.s32 q0, q2, r5
    vshl.s32 q1, r7
    vshl.s32 q0, r7
    vqmovnb.s32 q0, q0
    vqmovnt.s32 q0, q1
    vqadd.s16 q0, q0, r8
    vqmovnb.s16 q0, q0
.if \wide
    vmax.s8 q0, q0, q5
    vmin.s8 q0, q0, q6
.endif
.ifnb \t
    vpst
.endif
    vstrb\t\().16 q0, [r2], #8
.endm

.macro addition name, wide
function \name
    push {r4-r8, lr}
    vpush {d8-d13}
    ldrd r4, r5, [r0, #16]
    ldrd r6, r7, [r0, #24]
    ldr r8, [r0, #32]
    vdup.32 q4, r4
    ldr r3, [r0, #12]
.if \wide
    ldrd r1, r2, [r0, #36]
    vdup.8 q5, r1
    vdup.8 q6, r2
.endif
    ldrd r1, r2, [r0, #4]
    ldr r0, [r0]
    lsrs r4, r3, #3
    wls lr, r4, 2f
1:
    add_eight \wide
    le lr, 1b
2:
    ands r3, r3, #7
    beq 3f
    vctp.16 r3
    add_eight \wide, t
3:
    vpop {d8-d13}
    pop {r4-r8, pc}
.endm

addition pith_helium_add, 0
addition pith_helium_add_wide, 1

@ r0 input, r1 distance of rows, r2 rows, r3 sums, [sp] how many sums.
function pith_helium_sum_rows
    push {r4, r5, r6, lr}
    vpush {d8-d9}
    ldr r4, [sp, #32]
    b 3f
1:
    mov r5, r0
    vldrw.u32 q0, [r3]
    vldrw.u32 q1, [r3, #16]
    vldrw.u32 q2, [r3, #32]
    vldrw.u32 q3, [r3, #48]
    dls lr, r2
2:
    vldrb.s32 q4, [r5]
    vadd.i32 q0, q0, q4
    vldrb.s32 q4, [r5, #4]
    vadd.i32 q1, q1, q4
    vldrb.s32 q4, [r5, #8]
    vadd.i32 q2, q2, q4
    vldrb.s32 q4, [r5, #12]
    vadd.i32 q3, q3, q4
    add r5, r1
    le lr, 2b
    vstrw.32 q0, [r3], #16
    vstrw.32 q1, [r3], #16
    vstrw.32 q2, [r3], #16
    vstrw.32 q3, [r3], #16
    adds r0, #16
3:
    subs r4, #16
    bhs 1b
    adds r4, #16
    beq 6f
4:
    vctp.32 r4
    mov r5, r0
    vpst
    vldrwt.u32 q0, [r3]
    dls lr, r2
5:
    vpst
    vldrbt.s32 q4, [r5]
    vadd.i32 q0, q0, q4
    add r5, r1
    le lr, 5b
    vpst
    vstrwt.32 q0, [r3], #16
    adds r0, #4
    subs r4, #4
    bhi 4b
6:
    vpop {d8-d9}
    pop {r4, r5, r6, pc}

@ r0 input, r1 distance of rows, r2 rows, r3 maxima, [sp] how many.
function pith_helium_max_rows
    push {r4, r5, r6, lr}
    ldr r4, [sp, #16]
1:
    vctp.8 r4
    mov r5, r0
    vpst
    vldrbt.u8 q0, [r3]
    dls lr, r2
2:
    vpst
    vldrbt.u8 q1, [r5]
    vmax.s8 q0, q0, q1
    add r5, r1
    le lr, 2b
    vpst
    vstrbt.8 q0, [r3], #16
    adds r0, #16
    subs r4, #16
    bhi 1b
    pop {r4, r5, r6, pc}

@ Assembly of other crates may be put behind this.
.irp name, function, enter, leave, doublings, stage, step_x2, windows_x2, step_x1, windows_x1, depthwise, add_eight, addition
.purgem \name
.endr
.text
