// The model servers: a tile each, which stays the same element while its server lives, so that the focus stays too.

import {$, duration} from "../../page/dom.js";

export class Servers {
  #act;
  #tiles = new Map();  // name -> element

  // `act` does what a button says: see admin.js.
  constructor(act) { this.#act = act; }

  show(servers, isReadOnly) {
    $("no-servers").hidden = servers.length > 0;
    const names = new Set(servers.map(({name}) => name));
    for (const [name, tile] of this.#tiles) if (!names.has(name)) this.#remove(name, tile);
    for (const server of servers) {
      if (!this.#tiles.has(server.name)) this.#add(server.name);
      this.#write(this.#tiles.get(server.name), server, isReadOnly);
    }
  }

  #add(name) {
    const tile = $("server-template").content.cloneNode(true).firstElementChild;
    this.#tiles.set(name, tile);
    $("servers").append(tile);
  }

  #remove(name, tile) {
    const isFocused = tile.contains(document.activeElement);
    tile.remove();
    this.#tiles.delete(name);
    if (isFocused) $("servers-title").focus();
  }

  #write(tile, server, isReadOnly) {
    const find = name => tile.querySelector(name);
    find("h3").textContent = server.process_id ? `${server.host}, process ${server.process_id}` : "A model server";
    find(".name").textContent = server.name;
    find(".model").textContent = server.model === null ? "It does not tell what it serves."
      : `${server.model}, version ${server.version}, ${server.precision} on ${server.runtime}, ${server.width}×${server.height}`;
    tile.classList.toggle("odd", Boolean(server.differs));
    find(".differs").hidden = !server.differs;
    find(".differs").textContent = server.differs && `Not as most: ${server.differs}.`;
    find(".chip").hidden = !server.quiet;
    find(".holds").textContent = `${server.in_hand} of people, ${server.bulk_in_hand} asynchronous`;
    find(".lease").textContent = duration(1000 * server.lease_seconds_left);
    const button = find(".quiet");
    button.parentElement.hidden = isReadOnly;
    button.textContent = server.quiet ? "Wake" : "Quiet";
    button.setAttribute("aria-label", `${server.quiet ? "Wake" : "Quiet"} ${server.name}`);
    button.onclick = () => this.#act({
      path: `servers/${encodeURIComponent(server.name)}`, method: "POST", body: {quiet: !server.quiet},
      done: server.quiet ? "It takes jobs again." : "It takes no more; what it holds ends.",
    });
  }
}
