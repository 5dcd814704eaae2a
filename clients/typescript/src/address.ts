const DEFAULT_PORT = "50051";

/** `http://host:port` or `host:port`, without a port 50051, as a URL. Throws a TypeError for anything else. */
export function baseUrl(address: string): string {
    const match = /^(?:http:\/\/)?(\[[0-9a-f:.]+\]|[^\s:/@[\]]+)(?::(\d{1,5}))?\/?$/i.exec(address.trim());
    const port = match?.[2] ?? DEFAULT_PORT;
    if (!match || !(Number(port) > 0 && Number(port) < 65536)) {
        throw new TypeError(`"${address}" is not the address of a server: it must look like http://host:port`);
    }
    return `http://${match[1]}:${port}`;
}
