/** Seeded random numbers (sfc32) and operand values biased to corners. */
export class Random {
  private a: number
  private b: number
  private c: number
  private d = 1

  constructor(seed: number) {
    this.a = seed | 0
    this.b = 0x9e3779b9
    this.c = 0x243f6a88
    for (let i = 0; i < 20; i++) this.u32()
  }

  u32(): number {
    const t = (((this.a + this.b) | 0) + this.d) | 0
    this.d = (this.d + 1) | 0
    this.a = this.b ^ (this.b >>> 9)
    this.b = (this.c + (this.c << 3)) | 0
    this.c = (this.c << 21) | (this.c >>> 11)
    this.c = (this.c + t) | 0
    return t >>> 0
  }

  /** 0 <= result < n. */
  below(n: number): number {
    return Math.floor((this.u32() / 4294967296) * n)
  }

  chance(percent: number): boolean {
    return this.below(100) < percent
  }

  pick<T>(list: readonly T[]): T {
    const value = list[this.below(list.length)]
    if (value === undefined) throw new RangeError('pick from an empty list')
    return value
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32())
  }

  /** A 64-bit operand: corners of every width, few bits, sign-extended small numbers, or anything. */
  operand(): bigint {
    switch (this.below(8)) {
      case 0:
        return corners[this.below(corners.length)] as bigint
      case 1:
        return BigInt.asUintN(64, (corners[this.below(corners.length)] as bigint) ^ (this.u64() << BigInt(8 << this.below(3))))
      case 2:
        return 1n << BigInt(this.below(64))
      case 3:
        return BigInt.asUintN(64, BigInt(this.below(512) - 256))
      case 4:
        return BigInt(this.u32()) >> BigInt(this.below(32))
      default:
        return this.u64()
    }
  }
}

const corners: bigint[] = [0n, 1n, 2n, 0xfn, 0x10n]
for (const width of [8n, 16n, 32n, 64n]) {
  for (const v of [1n << (width - 1n), (1n << width) - 1n, (1n << (width - 1n)) - 1n, (1n << (width - 1n)) + 1n, 1n << width]) {
    corners.push(BigInt.asUintN(64, v), BigInt.asUintN(64, -v))
  }
}
