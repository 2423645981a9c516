# Bare integer loops in long mode, the same bytes for every emulator that is compared.
# Loaded and entered at 0x100000 with identity-mapped paging. The header holds two words that the runner patches:
#   +8  u64 scale: how often the workload is repeated
#   +16 u64 which workload
# Ends by writing "Shutdown" to port 0x8900 (Bochs) and then halting with interrupts off (Cloister).
# Data lives at 0x200000 and above; the stack below 0x180000.
.intel_syntax noprefix
.code64
.globl _start
_start:
	jmp	begin
	.balign	8, 0
scale:	.quad	1
which:	.quad	0
begin:
	mov	esp, 0x180000
	cld
	mov	r15, [rip + scale]
	mov	rax, [rip + which]
	test	r15, r15
	jz	finish
	lea	rbx, [rip + works]
	movsxd	rax, dword ptr [rbx + rax * 4]
	add	rbx, rax
again:
	call	rbx
	dec	r15
	jnz	again
finish:
	mov	dx, 0x8900
	lea	rsi, [rip + word_off]
	mov	ecx, 8
1:	mov	al, [rsi]
	out	dx, al
	inc	rsi
	dec	ecx
	jnz	1b
	cli
2:	hlt
	jmp	2b
word_off: .ascii "Shutdown"
	.balign	8, 0
works:
	.long	alu - works, sieve - works, fib - works, crc - works
	.long	copy - works, sort - works, dispatch - works, collatz - works

# 0: register arithmetic, 8 instructions an iteration
alu:
	mov	ecx, 1000000
	mov	rax, 0x123456789abcdef
	mov	edx, 77
1:	add	rax, rdx
	rol	rax, 7
	xor	rdx, rax
	lea	rdx, [rdx + rax * 2 + 3]
	shr	rdx, 3
	imul	rax, rax, 13
	dec	ecx
	jnz	1b
	ret

# 1: sieve of Eratosthenes over 64 KiB of bytes
sieve:
	mov	edi, 0x200000
	mov	ecx, 65536
1:	mov	byte ptr [rdi], 1
	inc	rdi
	dec	ecx
	jnz	1b
	mov	r8d, 0x200000
	mov	esi, 2
2:	cmp	byte ptr [r8 + rsi], 0
	je	4f
	mov	edi, esi
	imul	edi, esi
	cmp	edi, 65536
	jae	5f
3:	mov	byte ptr [r8 + rdi], 0
	add	edi, esi
	cmp	edi, 65536
	jb	3b
4:	inc	esi
	cmp	esi, 256
	jb	2b
5:	ret

# 2: recursive calls
fib:
	mov	edi, 24
fib1:
	cmp	edi, 2
	jae	1f
	mov	eax, edi
	ret
1:	push	rbx
	push	rdi
	dec	edi
	call	fib1
	mov	ebx, eax
	pop	rdi
	sub	edi, 2
	call	fib1
	add	eax, ebx
	pop	rbx
	ret

# 3: CRC-32 by table over 64 KiB; the table is made each time
crc:
	mov	r8d, 0x210000
	xor	ecx, ecx
1:	mov	eax, ecx
	mov	edx, 8
2:	mov	esi, eax
	and	esi, 1
	neg	esi
	and	esi, 0xedb88320
	shr	eax
	xor	eax, esi
	dec	edx
	jnz	2b
	mov	[r8 + rcx * 4], eax
	inc	ecx
	cmp	ecx, 256
	jb	1b
	mov	eax, -1
	mov	edi, 0x220000
	mov	ecx, 65536
3:	movzx	edx, byte ptr [rdi]
	xor	dl, al
	shr	eax, 8
	xor	eax, [r8 + rdx * 4]
	inc	rdi
	dec	ecx
	jnz	3b
	not	eax
	mov	[0x210000 + 1024], eax
	ret

# 4: copy of 128 KiB by 8 bytes
copy:
	mov	esi, 0x240000
	mov	edi, 0x280000
	mov	ecx, 16384
1:	mov	rax, [rsi]
	mov	[rdi], rax
	add	rsi, 8
	add	rdi, 8
	dec	ecx
	jnz	1b
	ret

# 5: shell sort of 4096 pseudo-random words
sort:
	mov	r8d, 0x2c0000
	mov	eax, 12345
	xor	ecx, ecx
1:	imul	eax, eax, 1103515245
	add	eax, 12345
	mov	[r8 + rcx * 4], eax
	inc	ecx
	cmp	ecx, 4096
	jb	1b
	mov	r9d, 2048
2:	mov	ecx, r9d
3:	mov	eax, [r8 + rcx * 4]
	mov	edx, ecx
4:	mov	esi, edx
	sub	esi, r9d
	jb	5f
	mov	edi, [r8 + rsi * 4]
	cmp	edi, eax
	jbe	5f
	mov	[r8 + rdx * 4], edi
	mov	edx, esi
	jmp	4b
5:	mov	[r8 + rdx * 4], eax
	inc	ecx
	cmp	ecx, 4096
	jb	3b
	shr	r9d
	jnz	2b
	ret

# 6: a byte-code interpreter: one indirect jump for each of 8 kinds of operation
dispatch:
	lea	r8, [rip + program]
	lea	r9, [rip + handlers]
	mov	ecx, 20000
	xor	eax, eax
	mov	edx, 1
1:	mov	rsi, r8
next:
	movzx	edi, byte ptr [rsi]
	inc	rsi
	movsxd	rdi, dword ptr [r9 + rdi * 4]
	add	rdi, r9
	jmp	rdi
op_add:	add	eax, edx
	jmp	next
op_sub:	sub	edx, 3
	jmp	next
op_xor:	xor	eax, 0x55
	jmp	next
op_shl:	shl	edx
	jmp	next
op_or:	or	edx, 5
	jmp	next
op_not:	not	eax
	jmp	next
op_mov:	lea	edx, [rax + 7]
	jmp	next
op_end:	dec	ecx
	jnz	1b
	ret
program: .byte	0, 1, 2, 3, 0, 4, 5, 6, 2, 0, 1, 3, 0, 5, 4, 0, 6, 2, 1, 0, 3, 7
	.balign	4, 0
handlers:
	.long	op_add - handlers, op_sub - handlers, op_xor - handlers, op_shl - handlers
	.long	op_or - handlers, op_not - handlers, op_mov - handlers, op_end - handlers

# 7: Collatz lengths: branches that are hard to predict
collatz:
	mov	ecx, 3000
1:	mov	eax, ecx
	xor	edx, edx
2:	inc	edx
	test	al, 1
	jz	3f
	lea	rax, [rax + rax * 2 + 1]
	jmp	2b
3:	shr	rax
	cmp	rax, 1
	ja	2b
	dec	ecx
	jnz	1b
	ret
end:
