/** The SEV platform. */
export class Platform {
  readonly seed: bigint
  constructor(seed: bigint) {
    this.seed = seed
  }
}
