# Loops around what is not plain computing. Loaded and entered at 0x100000 in long mode, identity-mapped by
# 2 MiB pages, stack its own. +16 u64: which loop. All are endless; the runner stops them by instruction budget.
#
#   0 TLB misses: 16384 pages of 4 KiB at 1 GiB, one load each; 4 instructions a miss
#   1 port exits: OUT 0x10, AL; 2 instructions an exit
#   2 TLB flushes: MOV CR3 and one load; 4 instructions a flush
#   3 page views (needs C-bit 51): one page through a private and a shared mapping, 128 stores each
#   4 port reads in the kernel's own answer: CPUID; 3 instructions each
.intel_syntax noprefix
.code64
.set CBIT, 51
.globl _start
_start:
	jmp	begin
	.balign	16, 0
which:	.quad	0
begin:
	mov	esp, 0x180000
	cld
	mov	rax, [rip + which]
	lea	rbx, [rip + works]
	movsxd	rax, dword ptr [rbx + rax * 4]
	add	rbx, rax
	jmp	rbx
	.balign	8, 0
works:	.long	misses - works, exits - works, flushes - works, views - works, cpuids - works

# PD at 0x200000, 32 page tables from 0x201000; all map the same 4 KiB frame range cyclically (2-4 MiB of RAM).
misses:
	mov	rsi, cr3
	mov	rdi, [rsi]		# PDPT
	and	rdi, -4096
	mov	qword ptr [rdi + 8], 0x200003
	mov	edi, 0x200000
	mov	eax, 0x201003
	mov	ecx, 32
1:	mov	[rdi], rax
	add	rdi, 8
	add	rax, 4096
	dec	ecx
	jnz	1b
	mov	edi, 0x201000
	mov	ecx, 16384
	xor	edx, edx
2:	mov	eax, edx
	and	eax, 255
	shl	eax, 12
	add	eax, 0x280003
	mov	[rdi], rax
	add	rdi, 8
	inc	edx
	dec	ecx
	jnz	2b
3:	mov	esi, 0x40000000
	mov	ecx, 16384
4:	mov	rax, [rsi]
	add	rsi, 4096
	dec	ecx
	jnz	4b
	jmp	3b

exits:
	out	0x10, al
	jmp	exits

flushes:
	mov	rdx, cr3
	mov	esi, 0x200000
1:	mov	cr3, rdx
	mov	rax, [rsi]
	inc	ecx
	jmp	1b

# A PD at 0x200000 for the second GiB: its first entry maps 0x300000's 2 MiB page (0x200000) without the C-bit.
views:
	mov	rsi, cr3
	mov	rax, (1 << CBIT) - 1
	and	rsi, rax
	mov	rdi, [rsi]
	and	rdi, -4096
	and	rdi, rax
	mov	rax, (1 << CBIT) | 0x380003
	mov	[rdi + 8], rax
	mov	edi, 0x380000
	mov	qword ptr [rdi], 0x200083
1:	mov	esi, 0x300000
	call	stores
	mov	esi, 0x40100000
	call	stores
	jmp	1b
stores:
	mov	ecx, 128
2:	mov	[rsi + rcx * 8], rcx
	dec	ecx
	jnz	2b
	ret

cpuids:
	xor	eax, eax
	cpuid
	jmp	cpuids
