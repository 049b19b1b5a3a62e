// The picture of all experts: a row for each layer, a cell for each expert, coloured by its bits in memory; a cell that was read
// just now flashes. One pixel a cell is drawn and scaled without smoothing: a model may have 20,000 experts.

export const LEVELS = [0, 2, 3, 4, 6, 8];
/** Milliseconds in which a flash fades. */
const FADE = 600;

type Rgb = [number, number, number];

function parse(color: string): Rgb {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })!;
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
  return [r ?? 0, g ?? 0, b ?? 0];
}

export class Picture {
  private bits: string[] = [];
  /** When each cell was read last. */
  private read = new Float64Array(0);
  private width = 0;
  private colors = new Map<string, Rgb>();
  private flash: Rgb = [255, 255, 255];
  private readonly cells = document.createElement("canvas");
  private frame = 0;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)");
  private readonly resized = new ResizeObserver(() => this.ask());

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.resized.observe(canvas);
    this.recolor();
  }

  end(): void {
    cancelAnimationFrame(this.frame);
    this.resized.disconnect();
  }

  /** Reads the colours of the page anew: it may be dark now. */
  recolor(): void {
    const style = getComputedStyle(this.canvas);
    const of = (name: string) => {
      // The colour as it is computed: the property itself may hold a pair for light and dark.
      const probe = document.createElement("span");
      probe.style.color = `var(${name})`;
      this.canvas.parentElement!.append(probe);
      const color = getComputedStyle(probe).color;
      probe.remove();
      return parse(color || style.color);
    };
    for (const level of LEVELS) this.colors.set(String(level), of(`--bits-${level}`));
    this.flash = of("--flash");
    this.ask();
  }

  show(bits: string[], reads: string[] | null): void {
    const width = bits.reduce((most, layer) => Math.max(most, layer.length), 0);
    if (width !== this.width || bits.length !== this.bits.length) {
      [this.width, this.read] = [width, new Float64Array(width * bits.length).fill(-Infinity)];
      [this.cells.width, this.cells.height] = [Math.max(1, width), Math.max(1, bits.length)];
    }
    this.bits = bits;
    const now = performance.now();
    reads?.forEach((layer, y) => {
      for (let x = 0; x < layer.length; x++) if (layer[x] !== "0") this.read[y * width + x] = now;
    });
    this.ask();
  }

  /** The layer and the expert below a point of the canvas. */
  at(x: number, y: number): { layer: number; expert: number; bits: number } | null {
    const box = this.canvas.getBoundingClientRect();
    const layer = Math.floor(((y - box.top) / box.height) * this.bits.length);
    const expert = Math.floor(((x - box.left) / box.width) * this.width);
    const digit = this.bits[layer]?.[expert];
    return digit === undefined ? null : { layer, expert, bits: Number(digit) };
  }

  private ask(): void {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame((now) => this.draw(now));
  }

  private draw(now: number): void {
    const context = this.cells.getContext("2d")!;
    const image = context.createImageData(this.cells.width, this.cells.height);
    let fading = false;
    this.bits.forEach((layer, y) => {
      for (let x = 0; x < layer.length; x++) {
        const color = this.colors.get(layer[x]!) ?? this.colors.get("0")!;
        const age = Math.max(0, now - this.read[y * this.width + x]!);
        // Without motion a cell that was read stays lit until the next event, and does not fade.
        const light = age >= FADE ? 0 : this.still.matches ? 0.5 : 0.65 * (1 - age / FADE) ** 2;
        fading ||= light > 0 && !this.still.matches;
        const at = 4 * (y * this.width + x);
        for (let c = 0; c < 3; c++) image.data[at + c] = color[c]! + (this.flash[c]! - color[c]!) * light;
        image.data[at + 3] = 255;
      }
    });
    context.putImageData(image, 0, 0);
    this.scale();
    if (fading) this.ask();
  }

  private scale(): void {
    const ratio = devicePixelRatio || 1;
    const [w, h] = [Math.round(this.canvas.clientWidth * ratio), Math.round(this.canvas.clientHeight * ratio)];
    if (w === 0 || h === 0) return;
    if (this.canvas.width !== w || this.canvas.height !== h) [this.canvas.width, this.canvas.height] = [w, h];
    const context = this.canvas.getContext("2d")!;
    const [columns, rows] = [this.cells.width, this.cells.height];
    context.clearRect(0, 0, w, h);
    context.imageSmoothingEnabled = w < columns || h < rows;
    context.drawImage(this.cells, 0, 0, w, h);
    // Gaps between cells, where there is room for them.
    const gap = ratio;
    if (w / columns >= 4 * ratio && h / rows >= 4 * ratio) {
      for (let x = 1; x < columns; x++) context.clearRect(Math.round((x * w) / columns) - gap / 2, 0, gap, h);
      for (let y = 1; y < rows; y++) context.clearRect(0, Math.round((y * h) / rows) - gap / 2, w, gap);
    }
  }
}
