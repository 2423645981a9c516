# Boot sector for other emulators: loads 16 sectors (loops.bin) behind itself, enters long mode with the first
# GiB identity-mapped by 2 MiB pages, copies the image to 0x100000 and jumps there.
.intel_syntax noprefix
.code16
.globl _start
_start:
	cli
	xor	ax, ax
	mov	ds, ax
	mov	ss, ax
	mov	sp, 0x7c00
	mov	ax, 0x1000		# 0x10000: read buffer
	mov	es, ax
	xor	bx, bx
	mov	ax, 0x0210		# read 16 sectors
	mov	cx, 0x0002		# cylinder 0, sector 2
	xor	dh, dh			# head 0; DL = boot drive from the BIOS
	int	0x13
	jc	fail
	in	al, 0x92
	or	al, 2
	out	0x92, al		# A20
	mov	di, 0x1000		# page tables at 0x1000, 0x2000, 0x3000
	push	0
	pop	es
	mov	cx, 0x3000
	xor	ax, ax
	cld
	rep	stosb
	mov	word ptr [0x1000], 0x2003
	mov	word ptr [0x2000], 0x3003
	mov	di, 0x3000
	mov	eax, 0x83
	mov	cx, 512
1:	mov	[di], eax
	add	eax, 0x200000
	add	di, 8
	loop	1b
	mov	eax, 0x1000
	mov	cr3, eax
	mov	eax, cr4
	or	eax, 0x20
	mov	cr4, eax
	mov	ecx, 0xc0000080
	rdmsr
	or	ax, 0x100
	wrmsr
	lgdt	[gdtr]
	mov	eax, cr0
	or	eax, 0x80000001
	mov	cr0, eax
	.byte	0x66, 0xea		# far jump to 64-bit code
	.long	long_mode
	.word	8
fail:	hlt
	jmp	fail
.code64
long_mode:
	mov	ax, 16
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	esi, 0x10000
	mov	edi, 0x100000
	mov	ecx, 8192 / 8
	rep	movsq
	mov	eax, 0x100000
	jmp	rax
	.balign	8, 0
gdt:	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word	23
	.long	gdt
	.org	510
	.word	0xaa55
