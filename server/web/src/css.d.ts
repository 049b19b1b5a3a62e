// Styles are files to Vite, and nothing to TypeScript.
declare module "*.css";
