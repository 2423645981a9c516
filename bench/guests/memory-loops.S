# Memory loops in long mode, the same bytes for every emulator that is compared. Header and end as in loops.S:
#   +8 u64 scale, +16 u64 which; "Shutdown" to port 0x8900, then HLT with interrupts off. Wants 512 MiB.
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
	call	tables
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
	.long	smc - works, movs - works, stos - works, apart - works, aliased - works, walk - works

# Page tables at 0x400000: 0-1 GiB by 2 MiB pages, 1-1.25 GiB by 4 KiB pages onto 256-512 MiB.
tables:
	mov	edi, 0x400000
	mov	ecx, 0x90000 / 8
	xor	eax, eax
	rep	stosq
	mov	dword ptr [0x400000], 0x401003
	mov	dword ptr [0x401000], 0x402003
	mov	dword ptr [0x401008], 0x403003
	mov	edi, 0x402000
	mov	eax, 0x83
	mov	ecx, 512
1:	mov	[rdi], rax
	add	rax, 0x200000
	add	rdi, 8
	dec	ecx
	jnz	1b
	mov	edi, 0x403000
	mov	eax, 0x404003
	mov	ecx, 128
2:	mov	[rdi], rax
	add	rax, 0x1000
	add	rdi, 8
	dec	ecx
	jnz	2b
	mov	edi, 0x404000
	mov	eax, 0x10000003
	mov	ecx, 65536
3:	mov	[rdi], rax
	add	rax, 0x1000
	add	rdi, 8
	dec	ecx
	jnz	3b
	mov	eax, 0x400000
	mov	cr3, rax
	mov	edi, 0x40000000		# touch every page once
	mov	ecx, 65536
4:	mov	[rdi], rdi
	add	rdi, 0x1000
	dec	ecx
	jnz	4b
	ret

# 0: every turn changes an instruction and executes it
smc:
	mov	ecx, 20000
	lea	rsi, [rip + patch]
1:	mov	[rsi + 1], ecx
patch:	mov	eax, 0
	add	edx, eax
	dec	ecx
	jnz	1b
	ret

# 1, 2: 1 MiB by REP MOVSB, REP STOSQ
movs:
	mov	esi, 0x800000
	mov	edi, 0xa12340
	mov	ecx, 0x100000
	rep	movsb
	ret
stos:
	mov	edi, 0xa12340
	mov	ecx, 0x20000
	rep	stosq
	ret

# 3, 4: copy of 128 KiB by 8 bytes, buffers 1 MiB + 128 KiB + 64 bytes apart; exactly 1 MiB apart
apart:
	mov	edi, 0x920040
	jmp	1f
aliased:
	mov	edi, 0x900000
1:	mov	esi, 0x800000
	mov	ecx, 16384
2:	mov	rax, [rsi]
	mov	[rdi], rax
	add	rsi, 8
	add	rdi, 8
	dec	ecx
	jnz	2b
	ret

# 5: a million dependent-free loads from random 4 KiB pages of 256 MiB
walk:
	mov	ecx, 1000000
	mov	r8d, 0x40000000
1:	imul	rax, rax, 1664525
	add	rax, 1013904223
	mov	edx, eax
	shr	edx, 4
	and	edx, 0xffffff8
	add	rbp, [r8 + rdx]
	dec	ecx
	jnz	1b
	ret
end:
