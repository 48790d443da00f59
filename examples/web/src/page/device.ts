/** What the browser says of its device, in words. */
interface AgentData {
    readonly brands: readonly { readonly brand: string; readonly version: string }[];
    readonly platform: string;
    getHighEntropyValues(hints: readonly string[]): Promise<{
        readonly model?: string;
        readonly platformVersion?: string;
        readonly architecture?: string;
    }>;
}

function agentData(): AgentData | undefined {
    return (navigator as { userAgentData?: AgentData }).userAgentData;
}

/** A phone's model, or the processor's kind, or how many cores there are. */
export async function deviceName(): Promise<string> {
    const { model, architecture } =
        (await agentData()?.getHighEntropyValues(["model", "architecture"])) ?? {};
    return model || `${architecture || "processor"}, ${navigator.hardwareConcurrency} cores`;
}

/** System and browser with their versions. */
export async function systemName(): Promise<string> {
    const data = agentData();
    if (!data) return navigator.userAgent;
    const { platformVersion = "" } = await data.getHighEntropyValues(["platformVersion"]);
    const browser = data.brands.filter(({ brand }) => !/not.*brand/i.test(brand)).at(-1);
    const system = [data.platform, platformVersion].filter(Boolean).join(" ");
    return browser ? `${system}, ${browser.brand} ${browser.version}` : system;
}
