# A flat 64-bit guest: prints on the serial port, asks CPUID who made the CPU, computes, and halts.
# Position independent; entered in long mode with identity-mapped paging; the stack is its own.
.intel_syntax noprefix
.code64
.globl _start
_start:
	lea	rsp, [rip + stack_end]
	lea	rsi, [rip + hello]
	call	print

	xor	eax, eax
	cpuid
	lea	rdi, [rip + vendor]
	mov	[rdi], ebx
	mov	[rdi + 4], edx
	mov	[rdi + 8], ecx
	lea	rsi, [rip + vendor_line]
	call	print

	# The 90th Fibonacci number, in decimal.
	mov	ecx, 90
	xor	eax, eax
	mov	ebx, 1
1:	xadd	rbx, rax
	dec	ecx
	jnz	1b
	lea	rdi, [rip + digits_end]
	mov	ebx, 10
2:	xor	edx, edx
	div	rbx
	add	dl, '0'
	dec	rdi
	mov	[rdi], dl
	test	rax, rax
	jnz	2b
	lea	rsi, [rip + fib_line]
	call	print
	mov	rsi, rdi
	call	print
	mov	rax, 0x600df00d
	cli
3:	hlt
	jmp	3b

# Prints the zero-terminated text at RSI on COM1.
print:
	mov	dx, 0x3f8
1:	lodsb
	test	al, al
	jz	2f
	out	dx, al
	jmp	1b
2:	ret

hello:	.asciz	"Hello from an ordinary guest.\n"
vendor_line: .ascii "The CPU says it is "
vendor:	.asciz	"????????????.\n"
fib_line: .asciz "fib(90) = "
digits:	.space	20, '0'
digits_end: .asciz "\n"
	.balign	16, 0
	.space	256, 0
stack_end:
