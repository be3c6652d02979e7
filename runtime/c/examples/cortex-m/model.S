// The file as it is, at a multiple of 16 bytes.
    .section .rodata.model, "a"
    .global model_start, model_end
    .balign 16
model_start:
    .incbin MODEL
model_end:
    .section .note.GNU-stack, "", %progbits
