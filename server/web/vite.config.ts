// Three files with fixed names: the program embeds them. What is bundled keeps its licences in a file of its own.
import { defineConfig } from "vite";

export default defineConfig({
  base: "/",
  build: {
    target: "es2022",
    cssTarget: ["chrome123", "firefox121", "safari17.5"],
    outDir: "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    modulePreload: false,
    license: { fileName: "page.licences.txt" },
    rolldownOptions: {
      output: {
        entryFileNames: "page.js",
        assetFileNames: (asset) => (asset.names.some((name) => name.endsWith(".css")) ? "page.css" : "[name][extname]"),
        codeSplitting: false,
      },
    },
  },
  // For work on the page: `npm run dev` beside a running server.
  server: { proxy: { "/v1": "http://127.0.0.1:8080" } },
});
