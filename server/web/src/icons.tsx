// A few icons, drawn with one stroke width. They say nothing to screen readers: their buttons do.

const paths = {
  plus: "M10 4v12M4 10h12",
  menu: "M3 6h14M3 10h14M3 14h9",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  close: "M5 5l10 10M15 5L5 15",
  copy: "M7 7V4h9v9h-3M4 7h9v9H4z",
  done: "M4 11l4 4 8-9",
  edit: "M4 16l1-4 8-8 3 3-8 8zM11 6l3 3",
  again: "M15.5 8A6 6 0 1 0 16 11.5M16 4v4h-4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  trash: "M4 6h12M8 6V4h4v2M6 6l1 10h6l1-10",
  pulse: "M2 10h4l2-5 4 10 2-5h4",
  dials: "M4 6h6M14 6h2M4 14h2M10 14h6M12 4v4M8 12v4",
  light: "M10 3v1.5M10 15.5V17M3 10h1.5M15.5 10H17M5 5l1 1M14 14l1 1M15 5l-1 1M6 14l-1 1M10 7a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  dark: "M15.5 12A6.5 6.5 0 0 1 8 4.5 6.5 6.5 0 1 0 15.5 12z",
  auto: "M10 3.5a6.5 6.5 0 1 0 0 13zM10 3.5a6.5 6.5 0 0 1 0 13",
  down: "M10 4v12M5 11l5 5 5-5",
} as const;

export function Icon({ name }: { name: keyof typeof paths }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" data-name={name}>
      <path d={paths[name]} />
    </svg>
  );
}

/** The drop that is also the page's icon. */
export function Drop() {
  return (
    <svg class="drop" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M16 3c1 4.5 9 7 10.5 14.5A10.6 10.6 0 1 1 5.5 17.5C7 11 14 9 16 3z" />
    </svg>
  );
}
