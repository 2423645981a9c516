/** Differences of a run by kind: how often each, and the first `show` of a kind whole. */
export class Tally {
  bad = 0
  readonly #show: number
  readonly #kinds = new Map<string, number>()
  readonly #texts: string[] = []

  constructor(show: number) {
    this.#show = show
  }

  /** `found`: what differs in one case; its values are no part of the kind. */
  add(name: string, found: readonly string[], describe: () => string): void {
    if (found.length === 0) return
    this.bad++
    const kind = `${name} ${found.map((f) => f.replace(/\(.*|0x[0-9a-f]+|[0-9a-f]{4,}/g, '')).join()}`
    const k = (this.#kinds.get(kind) ?? 0) + 1
    this.#kinds.set(kind, k)
    if (k <= this.#show) this.#texts.push(`${describe()}\n      ${found.join('\n      ')}`)
  }

  print(): void {
    if (this.bad === 0) return
    console.log(this.#texts.slice(0, 60).join('\n  '))
    console.log(
      [...this.#kinds]
        .toSorted((a, b) => b[1] - a[1])
        .map(([kind, n]) => `${n} ${kind}`)
        .join('\n'),
    )
  }
}
