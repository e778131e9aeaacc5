package android.app;

import android.content.Context;
import android.content.res.AssetManager;
import android.os.Bundle;
import android.view.View;

/** What the sample calls. */
public class Activity extends Context {
    protected void onCreate(Bundle state) {}

    public void setContentView(View view) {}

    public final void runOnUiThread(Runnable action) {
        action.run();
    }

    public AssetManager getAssets() {
        return new AssetManager(System.getProperty("apk"));
    }
}
