export { Model } from "./model.js";
