# An SEV guest (no SEV-ES) that works on private memory: what migration and moves of contexts are tried on. Linked and loaded
# at 0x200000, entered in long mode at its first byte with this image mapped private. It brings its own page tables: all
# memory private (C-bit 51) but the page at 0x300000, which it announces by KVM_HC_MAP_GPA_RANGE and writes progress into.
#
#   for ever: mix 32 private pages at 0x400000 with a generator whose state lives in general, SSE and x87 registers; after
#   each page print 16 hex digits of the running sum on COM1
.intel_syntax noprefix
.code64

.set CBIT, 51
.set SHARED, 0x300000
.set BUFFER, 0x400000
.set PAGES, 32
.set HC_MAP_GPA_RANGE, 12

.globl _start
_start:
	lea	rsp, [rip + stack_end]
	lea	rax, [rip + pml4]
	mov	cr3, rax
	mov	rax, cr4
	or	eax, 0x600		# OSFXSR, OSXMMEXCPT
	mov	cr4, rax
	fninit
	# gpa, pages, attributes: 4 KiB pages, shared
	mov	eax, HC_MAP_GPA_RANGE
	mov	ebx, SHARED
	mov	ecx, 1
	xor	edx, edx
	vmmcall
	mov	[rip + answer], rax

	# memory that nobody encrypted reads as noise, which depends on where it lies
	mov	edi, BUFFER
	mov	ecx, PAGES * 512
	xor	eax, eax
	rep	stosq

	mov	r12, 0x9e3779b97f4a7c15	# generator
	xor	r13d, r13d		# sum
	xor	r14d, r14d		# pages done
	fldpi
	mov	rax, 0x123456789abcdef
	movq	xmm7, rax
again:
	mov	r15d, BUFFER
next_page:
	xor	ecx, ecx
1:	mov	rax, r12
	shl	rax, 13
	xor	r12, rax
	mov	rax, r12
	shr	rax, 7
	xor	r12, rax
	mov	rax, r12
	shl	rax, 17
	xor	r12, rax
	mov	rax, [r15 + rcx]
	rol	rax, 7
	xor	rax, r12
	mov	[r15 + rcx], rax
	add	r13, rax
	add	ecx, 8
	cmp	ecx, 4096
	jne	1b
	# the SSE and x87 registers take part
	movq	xmm0, r13
	paddq	xmm7, xmm0
	movq	rax, xmm7
	xor	r13, rax
	fld	st(0)
	fimul	word ptr [rip + three]
	fstp	qword ptr [rip + product]
	add	r13, [rip + product]
	inc	r14
	mov	[SHARED], r14
	mov	rax, r13
	mov	ecx, 16
	mov	dx, 0x3f8
2:	rol	rax, 4
	mov	rbx, rax
	and	ebx, 15
	lea	rdi, [rip + digits]
	mov	bl, [rdi + rbx]
	xchg	al, bl
	out	dx, al
	xchg	al, bl
	dec	ecx
	jnz	2b
	mov	al, 10
	out	dx, al
	add	r15, 4096
	cmp	r15, BUFFER + PAGES * 4096
	jb	next_page
	jmp	again

digits:	.ascii	"0123456789abcdef"
three:	.word	3
	.balign	16, 0
product: .quad	0
answer:	.quad	-1
	.space	256, 0
stack_end:

# 0-2 MiB and 4 MiB-1 GiB by 2 MiB pages, 2-4 MiB by 4 KiB pages; C-bit everywhere but in the shared page's entry.
	.balign	4096, 0
pml4:	.quad	(1 << CBIT) | 0x200003 + (pdpt - _start)
	.balign	4096, 0
pdpt:	.quad	(1 << CBIT) | 0x200003 + (pd - _start)
	.balign	4096, 0
pd:	.quad	(1 << CBIT) | 0x83
	.quad	(1 << CBIT) | 0x200003 + (pt - _start)
.set page, 0x400000
.rept 510
	.quad	(1 << CBIT) | 0x83 + page
.set page, page + 0x200000
.endr
	.balign	4096, 0
pt:
.set page, 0x200000
.rept 512
.if page == SHARED
	.quad	3 + page
.else
	.quad	(1 << CBIT) | 3 + page
.endif
.set page, page + 0x1000
.endr
